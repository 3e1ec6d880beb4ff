"""Health and Prometheus metrics over HTTP, on one port and a thread of its own; nothing here changes anything."""
