"""Ansible callback plugins for `smith play`. ansible-playbook loads every module here, so all are plugins."""
