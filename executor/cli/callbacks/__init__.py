"""Ansible plugins of the command line; this folder is named to ansible-playbook, so nothing else may stand here."""
