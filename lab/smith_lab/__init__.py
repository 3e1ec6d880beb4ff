"""The lab: FulcrumCore and Proxmox to play with, for the demo, tests and bench. Nothing that ships imports it."""
