"""Ordinary and known hostile inputs of each parser, with which fuzzing begins."""

from __future__ import annotations

ID = b"0a1b2c3d-1111-4000-8000-000000000001"
MAC = b"BC:24:11:00:11:22"
SEEDS: dict[str, tuple[bytes, ...]] = {
    "fulcrum_json": (
        b'{"id":"%b","action":"create","status":"Pending","priority":1,"createdAt":"2026-11-27T08:00:00Z",'
        b'"params":{"cores":2},"service":{"id":"%b","name":"web","status":"New","properties":{"cores":2}}}' % (ID, ID),
        b"[" * 66 + b'"\\""' + b"]" * 66,
        b'{"a":1e999,"b":"\\ud800"}',
        b"\xef\xbb\xbf[]",
    ),
    "properties": (
        b'{"cores":2,"memoryMb":2048,"diskGb":10,"image":"debian-12"}',
        b'{"image":"debian-12","hostname":"web","network":{"mode":"static","address":"192.0.2.10/24",'
        b'"gateway":"192.0.2.1","dns":["192.0.2.2"],"bridge":"vmbr0","vlan":10},"sshKeys":["ssh-ed25519 AAAA x"],'
        b'"user":"u","password":"p","tags":["a"],"disks":[{"sizeGb":1,"storage":"local"}]}',
        b'{"snapshot":"a","description":"{{ x }}"}',
    ),
    "vault_references": (
        b'{"type":{"id":"%b","name":"VM","propertySchema":{"properties":{"password":{"type":"string","secret":true},'
        b'"a":{"type":"array","items":{"type":"object","properties":{"b":{"type":"string","secret":true}}}}}}},'
        b'"properties":{"password":"vault://x","a":[{"b":"vault://y"}]}}' % ID,
    ),
    "proxmox_json": (
        b'[{"vmid":100,"node":"pve1","type":"qemu","name":"a","status":"running","tags":"a;b","maxmem":1,"cpu":0.1}]',
        b'[{"node":"pve1","status":"online"}]',
        b'[{"storage":"local","node":"pve1","content":"images,backup","shared":1,"status":"available"}]',
        b'[{"volid":"a:backup/b","vmid":1,"notes":"x","ctime":1}]',
        b'{"name":"a","cores":"2","memory":"512","template":1}',
    ),
    "markers": (
        b"smith-uid=%b\nsmith-agent=%b" % (ID, ID),
        b" SMITH-UID = x\r\nsmith-uid=y",
        b"smith-delete-at=5\nsmith-delete=x",
    ),
    "guest_settings": (
        b'{"name":"a","description":"x","tags":"a;b","scsi0":"local:vm-100-disk-0,size=8G","ide2":"none,media=cdrom",'
        b'"net0":"virtio=%b,bridge=vmbr0","boot":"order=scsi0;net0","memory":"512","cores":2,"agent":"1",'
        b'"cipassword":"x","lock":"clone","ipconfig0":"ip=dhcp"}' % MAC,
        b'{"hostname":"a","rootfs":"local:vm-100-disk-0,size=8G","net0":"name=eth0,hwaddr=%b,bridge=vmbr0,ip=dhcp",'
        b'"unused0":"a:vm-100-disk-1","mp0":"a:100/x,mp=/x"}' % MAC,
    ),
    "guest_agent": (
        b'[{"name":"eth0","hardware-address":"%b","ip-addresses":[{"ip-address":"192.0.2.1","prefix":24},'
        b'{"ip-address":"2001:db8::1%%eth0"}]}]' % MAC.lower(),
        b'{"result":[{"name":"eth0","hardware-address":"%b","ip-addresses":[{"ip-address":"fe80::1"}]}]}' % MAC,
        b'[{"name":"eth0","hwaddr":"%b","inet":"192.0.2.1/24","inet6":"2001:db8::1/64"}]' % MAC,
        b'["x"]',
    ),
    "task_log": (
        b"create full clone of drive scsi0 (local:vm-9000-disk-0)\nclone to VM 100",
        b"Could not remove disk 'ceph:vm-100-disk-0', check manually: x",
        b"ERROR: Backup of VM 100 failed - VM is locked (backup)\nTASK ERROR: job errors",
    ),
    "error_texts": (
        b"VM is locked (backup)",
        b"500 Internal Server Error: Configuration file 'nodes/pve1/qemu-server/100.conf' does not exist",
        b"starting of VM 5 failed with exception: 403 Forbidden: Permission check failed (/vms/100, VM.Audit)",
        b"VM_NOT_FOUND: x",
        b"Fri, 27 Nov 2026 08:00:00 GMT",
    ),
    "run_output": (
        b"TASK [x] ****\nok: [localhost]\n",
        b"\x1b[KeyJldmVudCI6ICJydW5uZXJfb25fb2sifQ==\x1b[40D\x1b[K text\n",
    ),
    "run_events": (
        b'{"event":"playbook_on_stats","event_data":{"artifact_data":{"vm_result":{"vmid":100,"node":"pve1",'
        b'"status":"running","changed":true}}}}\n',
        b'{"event":"playbook_on_task_start"}\n'
        b'{"event":"runner_on_failed","event_data":{"res":{"msg":"CAPACITY: x"},"task_action":"fail"}}\n',
    ),
    "run_story": (
        b'{"event":"playbook_on_task_start","event_data":{"task":"a"}}\n'
        b'{"event":"runner_on_ok","event_data":{"res":{"changed":true,"msg":"x"},"duration":1.5}}\n'
        b"VM 100 (web): waiting for UPID:pve1:0001:clone, 40 %, log: a | b [1.5 s]",
        b"VM 1 (a): x, 9" + b"9" * 400 + b" % UPID:a [1.5 s]",
        b'{"event":"runner_on_failed","event_data":{"duration":1e300,"ignore_errors":true}}',
    ),
    "redactor": (
        b"open-sesa text with open-sesa me and open-sesa",
        b"12345678 MTIzNDU2Nzg= 3132 12345678",
        b'a"b\nc\\d x a\\"b\\nc\\\\d',
    ),
    "settings_file": (
        b"FULCRUM_API_URL=https://core.example.org\nSMITH_CONCURRENCY=4\n",
        b'export PROXMOX_HOST="pve.example.org" # x\nPROXMOX_NODES=pve1,pve2\nPROXMOX_TEMPLATES={"debian-12": 9000}\n',
        b"SMITH_LEASE_S='30\n",
    ),
    "adoption_file": (
        b"service_id,vmid\n%b,101\n" % ID,
        b'[{"service_id":"%b","vmid":101}]' % ID,
        b'[{"service_id":"x","vmid":' + b"1" * 5000 + b"}]",
        b"job_service_id;vmid\n%b;\n" % ID,
        b"SQLite format 3\0",
    ),
    "mapping_export": (
        b'{"format":"agent-smith-mappings-1","mappings":[{"service_id":"%b","cluster":"default","vmid":101,"name":"web",'
        b'"state":"pending_deletion","kind":"qemu","note":"x","cores":1,"delete_at":"0001-01-01T00:00:00+23:00"}]}'
        % ID,
    ),
    "action_schema": (
        b'{"type":"object","properties":{"cores":{"type":"integer","minimum":4},"name":{"pattern":"^a+$"}},'
        b'"required":["x"]}',
        b'{"$ref":"#/$defs/a","$defs":{"a":{"type":"object"}}}',
        b'{"disks":1,"$ref":"#/$defs/b"}',
    ),
    "http_requests": (
        b"GET /livez\nhost: 192.0.2.1",
        b"GET /metrics?x=1\nhost: localhost\nauthorization: Bearer a-token-of-more-than-sixteen\naccept: text/plain",
        b"POST /\nhost: x",
        b"HEAD /openapi.json\nhost: [::1]:9642",
    ),
}
