"""Agent Smith: runs FulcrumCore's VM jobs at Proxmox VE, each as an Ansible playbook."""
