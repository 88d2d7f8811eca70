"""From a request to tokens to events; used by neurond's front end and by cortexd.

No torch. Nothing here touches a device: it talks to one over `ipc.channel`.
"""
