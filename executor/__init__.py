"""Agent Smith: carries FulcrumCore's VM jobs to Proxmox VE, each as an Ansible playbook."""
