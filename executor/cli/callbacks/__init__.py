"""Contains Ansible callback plugins for `smith play`.

ansible-playbook loads every module in this folder as a plugin, so the folder must not contain other modules.
"""
