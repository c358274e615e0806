"""The HTTP routes: one router a file, each listed in `fmcnet.server.app.ROUTERS`."""
