# SPDX-License-Identifier: Apache-2.0
"""Defines the members of the action plugins' request `vm`. Written by docs/generate.py from doc_fragments/vm.py.

A description that begins with names of actions, such as `C(create)`, applies to these actions.
"""

from __future__ import annotations

from typing import Any

# fmt: off
VM_ARGUMENTS: dict[str, Any] = {'service_id': {'description': "UUID of the service. The guest's description contains "
                                                              'it as the marker.',
                                               'type': 'str',
                                               'required': True},
                                'agent_id': {'description': 'C(create), C(update): UUID of the agent in FulcrumCore. '
                                                            "The guest's description also has a line with this id. "
                                                            'This line does not identify the service; only the marker '
                                                            'does.',
                                             'type': 'str'},
                                'vmid': {'description': 'The VMID that is reserved for this service.',
                                         'type': 'int',
                                         'required': True},
                                'name': {'description': "The guest's name, reserved for this service alone. It "
                                                        'identifies a partial clone, which has no marker yet.',
                                         'type': 'str',
                                         'required': True},
                                'kind': {'description': 'A virtual machine (C(qemu)), which is the default, or a '
                                                        'container (C(lxc)).',
                                         'type': 'str',
                                         'choices': ['qemu', 'lxc']},
                                'cluster': {'description': 'Name of the cluster, which Agent Smith stores with each '
                                                           'mapping. The playbooks do not use it.',
                                            'type': 'str'},
                                'node': {'description': "C(create): node for the guest. Empty means the template's "
                                                        'node; a clone on another node needs shared storage. Other '
                                                        'actions: node on which the guest is looked up first.',
                                         'type': 'str'},
                                'template_vmid': {'description': 'VMID of the template. A C(create) of a VM needs one '
                                                                 'of C(template_vmid), C(template), C(iso) and '
                                                                 'C(blank).',
                                                  'type': 'int'},
                                'template': {'description': 'Name of the template. If several templates have this '
                                                            'name, a template on C(node) is preferred.',
                                             'type': 'str'},
                                'iso': {'description': 'Volume of an ISO image, such as C(local:iso/debian-12.iso). '
                                                       'The VM is created without a template, with empty disks and '
                                                       'with this image in its CD-ROM drive.',
                                        'type': 'str'},
                                'blank': {'description': 'Create the VM without a template, with empty disks, for an '
                                                         'installation over the network.',
                                          'type': 'bool'},
                                'os_type': {'description': "Proxmox's ostype of a VM that is created with C(iso) or "
                                                           'C(blank). C(l26) (Linux) by default.',
                                            'type': 'str'},
                                'os_template': {'description': "Volume of a container's OS template, such as "
                                                               'C(local:vztmpl/debian-12.tar.zst).',
                                                'type': 'str'},
                                'swap_mib': {'description': "A container's swap in MiB.", 'type': 'int'},
                                'full_clone': {'description': "Copy the template's disks; the default is true. A "
                                                              'linked clone (false) shares its disks with the '
                                                              'template; C(storage) is then used for new disks only.',
                                               'type': 'bool'},
                                'storage': {'description': "Storage of a full clone's disks, of the disks of a guest "
                                                           'without a template, and of each new disk for which '
                                                           'C(disks) names no storage. By default, the disks of a '
                                                           "clone are on the storages of the template's disks, and a "
                                                           "new disk is on the storage of the first disk (a VM's boot "
                                                           "disk, a container's root volume).",
                                            'type': 'str'},
                                'pool': {'description': 'C(create): resource pool for the guest.', 'type': 'str'},
                                'cores': {'description': 'Cores of each socket. Required by C(create).', 'type': 'int'},
                                'memory_mib': {'description': 'Memory in MiB. Required by C(create).', 'type': 'int'},
                                'disk_gib': {'description': "Size of the first disk (a VM's boot disk, a container's "
                                                            'root volume) in GiB. Required by C(create). The minimum '
                                                            'is the current size of the disk; in a C(create), it is '
                                                            "the size of the template's first disk.",
                                             'type': 'int'},
                                'sockets': {'description': 'Number of sockets. If the request contains C(cores) but '
                                                           'not C(sockets), the VM gets one socket, so that C(cores) '
                                                           'is the total.',
                                            'type': 'int'},
                                'cpu_type': {'description': 'CPU model that the guest sees, such as C(host) or '
                                                            'C(x86-64-v2-AES).',
                                             'type': 'str'},
                                'balloon_mib': {'description': 'Minimum memory for ballooning, in MiB, at most '
                                                               'C(memory_mib); 0 switches ballooning off.',
                                                'type': 'int'},
                                'onboot': {'description': 'Start the guest when its node starts.', 'type': 'bool'},
                                'protection': {'description': "Proxmox's protection flag: deletion is refused until an "
                                                              'update removes the flag.',
                                               'type': 'bool'},
                                'guest_agent': {'description': 'Allow Proxmox to use the guest agent.', 'type': 'bool'},
                                'boot_order': {'description': 'Devices to boot from, in order, such as C(scsi0), '
                                                              'C(net0).',
                                               'type': 'list',
                                               'elements': 'str'},
                                'disks': {'description': 'Disks by name. If the guest has no disk of this name, the '
                                                         'disk is added. An existing disk is moved to the requested '
                                                         'storage and grown to the requested size. Disks that are not '
                                                         'in the list are not changed.',
                                          'type': 'list',
                                          'elements': 'dict',
                                          'options': {'disk': {'description': 'Name of the disk, such as C(scsi1) or '
                                                                              'C(virtio0).',
                                                               'type': 'str',
                                                               'required': True},
                                                      'size_gib': {'description': 'Size in GiB, required for a new '
                                                                                  'disk. An existing disk can only '
                                                                                  'grow.',
                                                                   'type': 'int'},
                                                      'storage': {'description': 'Storage of the disk. The default for '
                                                                                 'a new disk is the member C(storage) '
                                                                                 'of C(vm), or else the storage of the '
                                                                                 'first disk. Without a storage, an '
                                                                                 'existing disk is not moved.',
                                                                  'type': 'str'}}},
                                'networks': {'description': 'The NICs C(net0), C(net1) and so on, in this order. For '
                                                            'the first NIC, this list has precedence over C(network) '
                                                            'and C(bridge). NICs that are not in the list are not '
                                                            'changed. Options of a NIC that are not given are not '
                                                            'changed.',
                                             'type': 'list',
                                             'elements': 'dict',
                                             'options': {'bridge': {'description': 'Bridge. The default for a new NIC '
                                                                                   'is the bridge of the first NIC.',
                                                                    'type': 'str'},
                                                         'vlan': {'description': 'VLAN tag; 0 removes it.',
                                                                  'type': 'int'},
                                                         'firewall': {'description': "Proxmox's firewall filters the "
                                                                                     'NIC.',
                                                                      'type': 'bool'},
                                                         'rate_mbps': {'description': 'Rate limit in megabits per '
                                                                                      'second; 0 removes it.',
                                                                       'type': 'float'},
                                                         'mac': {'description': 'MAC address. By default Proxmox '
                                                                                'chooses one for a new NIC.',
                                                                 'type': 'str'},
                                                         'mode': {'description': 'How the guest gets its IPv4 address. '
                                                                                 'C(static) needs C(ipv4_cidr) and a '
                                                                                 'cloud-init drive.',
                                                                  'type': 'str',
                                                                  'choices': ['dhcp', 'static']},
                                                         'ipv4_cidr': {'description': 'Address with prefix length, '
                                                                                      'such as 192.0.2.10/24.',
                                                                       'type': 'str'},
                                                         'ipv4_gateway': {'description': 'Gateway. It must be in the '
                                                                                         'network of the address, '
                                                                                         'unless the prefix length of '
                                                                                         'the address is 32.',
                                                                          'type': 'str'},
                                                         'ipv6_mode': {'description': 'How the guest gets its IPv6 '
                                                                                      'address. C(static) needs '
                                                                                      'C(ipv6_cidr) and a cloud-init '
                                                                                      'drive.',
                                                                       'type': 'str',
                                                                       'choices': ['dhcp', 'slaac', 'static']},
                                                         'ipv6_cidr': {'description': 'Address with prefix length, '
                                                                                      'such as 2001:db8::10/64.',
                                                                       'type': 'str'},
                                                         'ipv6_gateway': {'description': 'Gateway. It must be '
                                                                                         'link-local or in the network '
                                                                                         'of the address, unless the '
                                                                                         'prefix length of the address '
                                                                                         'is 128.',
                                                                          'type': 'str'}}},
                                'tags': {'description': 'Tags of the service; the guest also gets the tag C(smith). '
                                                        'Tags that an operator has set on the guest are kept.',
                                         'type': 'list',
                                         'elements': 'str'},
                                'previous_tags': {'description': "C(update): the service's tags before the update. Of "
                                                                 'these, the tags that are not in C(tags) are removed.',
                                                  'type': 'list',
                                                  'elements': 'str'},
                                'description': {'description': "Text for the guest's description (Proxmox's notes). It "
                                                               "is written above the marker and replaces the service's "
                                                               'previous text. Lines that an operator has written are '
                                                               'kept.',
                                                'type': 'str'},
                                'bridge': {'description': 'Bridge of the first NIC, unless C(network) or C(networks) '
                                                          'names a bridge.',
                                           'type': 'str'},
                                'network': {'description': 'The first NIC and its address.',
                                            'type': 'dict',
                                            'options': {'bridge': {'description': 'Bridge of the first NIC.',
                                                                   'type': 'str'},
                                                        'vlan': {'description': 'VLAN tag of the first NIC; 0 removes '
                                                                                'it.',
                                                                 'type': 'int'},
                                                        'mode': {'description': 'How the guest gets its IPv4 address. '
                                                                                'C(static) needs C(ipv4_cidr) and a '
                                                                                'cloud-init drive.',
                                                                 'type': 'str',
                                                                 'choices': ['dhcp', 'static']},
                                                        'ipv4_cidr': {'description': 'Address with prefix length, such '
                                                                                     'as 192.0.2.10/24.',
                                                                      'type': 'str'},
                                                        'ipv4_gateway': {'description': 'Gateway. It must be in the '
                                                                                        'network of the address, '
                                                                                        'unless the prefix length of '
                                                                                        'the address is 32.',
                                                                         'type': 'str'},
                                                        'ipv6_mode': {'description': 'How the guest gets its IPv6 '
                                                                                     'address. C(static) needs '
                                                                                     'C(ipv6_cidr) and a cloud-init '
                                                                                     'drive.',
                                                                      'type': 'str',
                                                                      'choices': ['dhcp', 'slaac', 'static']},
                                                        'ipv6_cidr': {'description': 'Address with prefix length, such '
                                                                                     'as 2001:db8::10/64.',
                                                                      'type': 'str'},
                                                        'ipv6_gateway': {'description': 'Gateway. It must be '
                                                                                        'link-local or in the network '
                                                                                        'of the address, unless the '
                                                                                        'prefix length of the address '
                                                                                        'is 128.',
                                                                         'type': 'str'},
                                                        'dns_servers': {'description': 'Name servers, which need a '
                                                                                       'cloud-init drive; an empty '
                                                                                       'list removes them.',
                                                                        'type': 'list',
                                                                        'elements': 'str'},
                                                        'search_domains': {'description': 'DNS search domains, which '
                                                                                          'need a cloud-init drive; an '
                                                                                          'empty list removes them.',
                                                                           'type': 'list',
                                                                           'elements': 'str'}}},
                                'cloud_init': {'description': "The guest's login and cloud-init's vendor data. A VM "
                                                              'needs a cloud-init drive for them; a container gets the '
                                                              'login only at its creation.',
                                               'type': 'dict',
                                               'options': {'user': {'description': 'Name of the user.', 'type': 'str'},
                                                           'password': {'description': "The user's password. Proxmox "
                                                                                       'returns it masked, so it '
                                                                                       'cannot be compared. A repeated '
                                                                                       'C(create) does not set it '
                                                                                       'again. An C(update) sets it '
                                                                                       'whenever the request contains '
                                                                                       'it.',
                                                                        'type': 'str',
                                                                        'no_log': True},
                                                           'ssh_public_keys': {'description': 'Public keys, one per '
                                                                                              'element, as '
                                                                                              'C(ssh-keygen -l) '
                                                                                              'accepts them. They can '
                                                                                              'be replaced, but not '
                                                                                              'removed.',
                                                                               'type': 'list',
                                                                               'elements': 'str',
                                                                               'no_log': False},
                                                           'vendor_snippet': {'description': 'Volume of a snippet with '
                                                                                             "cloud-init's vendor "
                                                                                             'data, such as '
                                                                                             'C(local:snippets/vendor.yml).',
                                                                              'type': 'str'}}},
                                'allowed': {'description': 'The bridges, VLANs, storages and tags that the request may '
                                                           'name. A value that the guest already has is always '
                                                           'allowed. Without this member, every value is allowed. C(*) '
                                                           "in a list allows every value of this list's kind. Bridges "
                                                           'that Proxmox does not list are an exception (see '
                                                           'C(bridges)).',
                                            'type': 'dict',
                                            'options': {'bridges': {'description': 'Bridges. Proxmox does not list the '
                                                                                   'bridges of '
                                                                                   'C(/etc/network/interfaces.d), so '
                                                                                   'C(*) does not allow them. Each of '
                                                                                   'them must be named here, unless '
                                                                                   'the guest already has it.',
                                                                    'type': 'list',
                                                                    'elements': 'str'},
                                                        'vlans': {'description': 'VLANs and ranges of VLANs, such as '
                                                                                 'C(100-199).',
                                                                  'type': 'list',
                                                                  'elements': 'str'},
                                                        'storages': {'description': 'Storages of disks, ISO images and '
                                                                                    'snippets.',
                                                                     'type': 'list',
                                                                     'elements': 'str'},
                                                        'backup_storages': {'description': 'Storages of backups.',
                                                                            'type': 'list',
                                                                            'elements': 'str'},
                                                        'tags': {'description': 'Tags, and beginnings of tags such as '
                                                                                'C(customer-*).',
                                                                 'type': 'list',
                                                                 'elements': 'str'}}},
                                'snapshot': {'description': 'C(snapshot): name of the new snapshot; by default the '
                                                            'first free name of C(smith-1), C(smith-2) and so on. '
                                                            'C(rollback): name of the snapshot; by default the newest '
                                                            'snapshot that Proxmox is neither creating nor deleting. '
                                                            'ZFS and storages with C(snapshot-as-volume-chain) accept '
                                                            'only the newest snapshot.',
                                             'type': 'str'},
                                'force': {'description': 'C(stop): switch off a VM that still runs one second after '
                                                         'the request to shut down. Does not change the stop of a '
                                                         'container. C(restart): reset a VM; kill a container that '
                                                         'still runs 60 seconds after the request to shut down, and '
                                                         'start it.',
                                          'type': 'bool'},
                                'shutdown_timeout_s': {'description': 'C(stop), C(delete): maximum duration of the '
                                                                      "guest's shutdown in seconds. Default 60.",
                                                       'type': 'int'},
                                'allow_reboot': {'description': 'C(update): restart the VM if some of its values take '
                                                                'effect only after a restart.',
                                                 'type': 'bool'},
                                'address_timeout_s': {'description': 'C(start), C(restart): maximum time to wait for '
                                                                     'an address from the guest agent, in seconds. '
                                                                     'Default 10.',
                                                      'type': 'int'},
                                'backup_storage': {'description': 'C(backup): storage for the archive.', 'type': 'str'},
                                'backup_mode': {'description': "C(backup), C(delete): Proxmox's mode of the backup, "
                                                               'C(snapshot) (default), C(suspend) or C(stop).',
                                                'type': 'str'},
                                'final_backup': {'description': 'C(delete): name of the storage for a final archive of '
                                                                'the stopped guest. Default: no final archive.',
                                                 'type': 'str'},
                                'grace_s': {'description': 'C(delete): seconds for which the guest is kept, stopped '
                                                           'and marked for deletion; a C(delete) after this time '
                                                           'destroys it.',
                                            'type': 'int'},
                                'only_when_due': {'description': 'C(delete): destroy the guest only if it is marked '
                                                                 'for deletion and its grace period has ended; a guest '
                                                                 'whose mark was removed is not changed.',
                                                  'type': 'bool'},
                                'cancel_deletion': {'description': 'C(update): remove the deletion mark, which a '
                                                                   'C(delete) with C(grace_s) has written.',
                                                    'type': 'bool'},
                                'purge': {'description': 'C(delete): also remove the guest from backup jobs, '
                                                         'replication and HA. Default false.',
                                          'type': 'bool'},
                                'remove_volumes_left': {'description': 'C(delete): remove the leftover volumes, which '
                                                                       'are the volumes of the deleted guest that '
                                                                       'Proxmox could not remove. A volume that '
                                                                       'another guest uses is kept. Needs '
                                                                       'Datastore.Allocate on their storage, and '
                                                                       'VM.Audit on /vms. Default false.',
                                                        'type': 'bool'},
                                'target_node': {'description': 'C(migrate): target node.', 'type': 'str'},
                                'online': {'description': 'C(migrate): migrate a running VM live (default); if false, '
                                                          'the VM must be stopped.',
                                           'type': 'bool'},
                                'with_local_disks': {'description': 'C(migrate): also copy disks on local storage. '
                                                                    'Needs community.proxmox >= 1.5.',
                                                     'type': 'bool'},
                                'half_made': {'description': 'C(delete): true if the VM may be a partial clone, '
                                                             'because the C(create) with this VMID has not succeeded. '
                                                             'A partial clone has no marker and is identified by its '
                                                             'name. Default false.',
                                              'type': 'bool'},
                                'timeout_s': {'description': "Maximum duration of the plugin's execution in seconds. "
                                                             'Default 240.',
                                              'type': 'int'},
                                'deadline_monotonic_s': {'description': "Time at which the plugin's execution must "
                                                                        "end, by the clock of Python's "
                                                                        'C(time.monotonic). The execution ends earlier '
                                                                        'if C(timeout_s) is over earlier.',
                                                         'type': 'float'},
                                'properties': {'description': "The service's properties as FulcrumCore sent them, for "
                                                              "the playbooks of a provider's own actions.",
                                               'type': 'dict'}}
