"""Metadata lives in setup.cfg; this file lets old tooling find it."""

from setuptools import setup

setup()
