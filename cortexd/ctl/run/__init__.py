"""`cortex run`: a node and a gateway in the foreground, for one person and no setup."""
