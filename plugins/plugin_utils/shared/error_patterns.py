# SPDX-License-Identifier: Apache-2.0
"""The rules that map a text of Proxmox, or of a module, to an error code.

The patterns contain words of the texts of Proxmox VE 8 and 9, and of community.proxmox.
tests/data/proxmox_failures.jsonl has texts for each rule, with the source files that contain them. Every pattern is
valid in Python and in RE2 (the regular expressions of Go), and every repetition in it has a limit, so that the time to
match a text is proportional to its length.
"""

from __future__ import annotations

from .login_repeats import LOGIN_NOT_REPEATED_TEXT

#: Matches the error text of a request or a Proxmox task that did not get a lock in time: the lock file of a guest, the
#: cluster-wide lock of a storage, or the lock of a backup.
LOCK_TIMEOUT_PATTERN = (
    r"can't (lock file|acquire lock)|cfs-lock '[^']{1,100}' error|got lock (request )?timeout|-locked command timed out"
    r"|failed: got timeout|can't get cfs lock"
)

#: Matches a text about a guest that is not on the requested node, or not in the cluster's list of guests. The text does
#: not prove that the guest does not exist: the guest may have moved, or the list may be out of date.
GUEST_NOT_FOUND_PATTERN = (
    r"VM with (vmid|VMID) \d{1,9} does not exist in cluster"
    r"|Configuration file 'nodes/[^/]{1,100}/(qemu-server|lxc)/\d{1,9}\.conf' does not exist"
    r"|unable to find configuration file|unable to find VM '\d{1,9}'"
)
#: The rules: each has an error code and a pattern. The first rule whose pattern matches a text is used.
RULES: tuple[tuple[str, str], ...] = (
    # If a connection ends during the TLS handshake, the certificate may still be valid. So this rule precedes PVE_TLS.
    (
        "PVE_UNREACHABLE",
        r"SSLEOFError|UNEXPECTED_EOF|EOF occurred in violation of protocol|SSLZeroReturnError"
        r"|handshake operation timed out",
    ),
    # A request that Proxmox answers with 401 is repeated before the answer counts as final. Our modules write
    # LOGIN_NOT_REPEATED_TEXT if too little time was left for all repetitions. The refusal may be temporary, so the
    # agent must retry the job. After the code PVE_AUTH, it would not retry.
    ("PVE_UNREACHABLE", LOGIN_NOT_REPEATED_TEXT),
    ("PVE_TLS", r"CERTIFICATE_VERIFY_FAILED|SSLError|TLS CA certificate bundle"),
    (
        "PVE_AUTH",
        r"\b401 Unauthorized|Couldn't authenticate user|No valid authentication credentials|invalid (PVE )?ticket"
        r"|invalid csrf token|required: api_password, api_token_id",
    ),
    # Proxmox answers 595 if it could not forward a request to the node that the request names. The pattern also
    # matches the texts of a migration that cannot reach its target node. That migration has changed nothing, so a retry
    # is safe.
    (
        "NODE_DOWN",
        r"\b595 |No route to host|hostname lookup '[^']{1,300}' failed|did not find any IP address"
        r"|unable to get remote IP address|failed to get (address info for|ip for node|numerical host address)"
        r"|[Cc]an't connect to destination address|can't open tunnel",
    ),
    # If the quorum is lost during a Proxmox task, the task cannot write the temporary file of a configuration.
    (
        "PVE_NO_QUORUM",
        r"no quorum|(unable to open file|unable to write|closing file) '[^']{1,300}\.tmp\."
        r"|close \(rename\) atomic file '/etc/pve/",
    ),
    # Proxmox answers 596 to 599 if it forwarded a request to another node and got no complete answer. The other node
    # may still execute the request. A text with `Read timed out` can also contain `Max retries exceeded`, which the
    # next rule matches. This rule comes first, so that the text gets the code PVE_TIMEOUT.
    # The second line of the pattern matches the status of a Proxmox task that was killed, or whose log was removed. The
    # third line matches the answer to a request that may have started a Proxmox task whose UPID is unknown.
    (
        "PVE_TIMEOUT",
        r"\b59[6-9] |Read timed out|ConnectTimeout|interrupted by (unexpected )?signal|received interrupt"
        r"|unexpected status|unable to get last line from task log|no such task"
        r"|worker upid .{0,200}- start worker failed|got no worker upid|timeout waiting on systemd",
    ),
    (
        "PVE_UNREACHABLE",
        r"Failed to establish a new connection|NameResolutionError|Max retries exceeded|Connection aborted"
        r"|RemoteDisconnected|Connection reset|\b(429|502|503|504) [A-Z]"
        r"|Unable to load access control list|ipcc_send_rec\S{0,40} failed|pmxcfs\)? (is )?not mounted"
        r"|cluster filesystem not online|init request failed|unable to fork worker",
    ),
    # A hibernated VM stays locked until it is started, so a retry fails, too. After the code VM_LOCKED, the agent would
    # retry.
    ("VM_STATE", r"(VM|CT) is locked \(suspended\)|in error state, must be disabled and fixed first"),
    ("VM_HALF_DESTROYED", r"(VM|CT) is locked \(destroyed\)"),
    (
        "VM_LOCKED",
        rf"(VM|CT) is locked|{LOCK_TIMEOUT_PATTERN}|missing snapshot lock|migration lock|got wrong lock|invalid lock"
        r"|trying to remove .{1,40} lock|lock changed unexpectedly|config lock, aborting",
    ),
    # A guest that has moved to another node is not found on its old node. The text does not prove that the guest does
    # not exist, so the code is not VM_NOT_FOUND. A retry looks the guest up again. On the old node, Proxmox reports a
    # container as `not running`, because it does not check whether the container's configuration is there. An action
    # plugin never requests the power state that the guest already has. So `not running` and `already running` mean that
    # the guest has changed or moved since the look-up.
    # `An error occurred: 'name'` is from the module `proxmox`: Proxmox's list of guests does not contain the name of a
    # new container yet.
    (
        "PVE_CONFLICT",
        rf"{GUEST_NOT_FOUND_PATTERN}|checksum miss?match|detected modified configuration|An error occurred: 'name'"
        r"|(VM|CT) \d{1,9} (not|already) running|unexpected state change",
    ),
    ("VM_ID_TAKEN", r"config file already exists|already exists on node|VM \d{1,9} already exists"),
    (
        "CAPACITY",
        r"[Nn]o space left|not enough (free )?space|insufficient (free )?space|out of (data )?space|quota exceeded"
        r"|exceeds .{0,100}quota|unable to get any free VMID|max backup limit|[Cc]annot allocate memory"
        r"|free space in thin pool|reached threshold|protected backups per guest is limited|hugepage allocation failed"
        r"|vcpus allowed per VM on this node|unable to allocate an image name|unable to find free port"
        r"|(can't|cannot) find (any )?free (ip|IP)|No free IP left"
        r"|no available instances of|could not find a free device|vgpu type '[^']{1,100}' not available",
    ),
    # A missing storage has another code than an unavailable storage, because a retry would not find the missing
    # storage.
    ("NOT_FOUND", r"storage '[^']{1,100}' does not exist|^Storage \S{1,100} does not exist in the cluster"),
    (
        "STORAGE_UNAVAILABLE",
        r"storage '[^']{1,100}' (is not online|is disabled|is not available)|rbd error|couldn't connect to the cluster"
        r"|rados_connect|(unable to|could not) activate storage|no such (volume group|logical volume)"
        r"|connection check for storage|Cannot find datastore|error listing snapshots|no zvol device link"
        r"|(unexpected data|JSON output) from '?rbd|not a btrfs file system"
        r"|Read-only file system|Stale file handle|Transport endpoint is not connected",
    ),
    (
        "NOT_FOUND",
        r"pool '[^']{1,100}' does not exist|no such cluster node|node '[^']{1,100}' does not exist|VM with name = "
        r"|No VM with name|Multiple VMs with name|[Ss]napshot '?[^ ']{1,100}'? does not exist"
        r"|bridge '[^']{1,100}' (does not exist|is not active)|interface \S{1,100} does not exist"
        r"|script '[^']{1,300}' does not exist|mapping not found for|[Nn]o PCI device found|No directory mapping"
        r"|(pci|usb) device '[^']{1,200}' not found|Directory ID \S{1,100} does not exist"
        r"|[Cc]ustom (cputype|CPU model) '[^']{1,100}' (not found|does not exist)|cputype '[^']{1,100}' is not defined"
        r"|could not find snapshot '|vnet \S{1,100} is not allowed on this node|can't find bridge",
    ),
    (
        "PVE_PERMISSION",
        r"\b403 Forbidden|Permission check failed|[Oo]nly root\S{0,10} (can|may)|missing privileges"
        r"|Insufficient permission|need proper ticket|possible for root",
    ),
    ("SHUTDOWN_TIMEOUT", r"quit/powerdown failed|container did not stop"),
    ("VM_PROTECTED", r"protection mode enabled|cannot remove protected"),
    ("VM_NOT_RUNNING", r"(VM|CT) \d{1,9} is not running"),
    (
        "VM_STATE",
        r"used in HA resources|still in use|is paused|is running|if it's a template|if vm is a template"
        r"|without --online|snapshot name '[^']{0,100}' already used|feature is not (available|supported)"
        r"|live[- ]migrat|while VM is running|incomplete snapshot|needed by replication|Too many unused volumes"
        r"|wrong snapshot state|is not most recent snapshot|move a (disk|volume) with snapshots"
        r"|with stop mode on a HA managed|[Tt]here is a replication job|is a template and cannot|not HA managed"
        r"|replicated (VM|container)|overwrite running|restart mode|in use by (running )?VMID|reserved for use by VMID"
        r"|while CT is running|cannot suspend|No QEMU guest agent|guest agent is not running",
    ),
    # A running guest did not apply new values. They are stored, and take effect at its next start.
    ("VM_STATE", r"hotplug problem - |unable to hotplug \w{1,40}: "),
    # A storage, a disk or a device of the guest does not support what the action needs.
    (
        "VM_STATE",
        r"which uses local (devices|resources)|uses local resources|local (cdrom image|file/device)|owned by other"
        r"|cannot migrate|(migrate|migration) to '[^']{1,100}': missing mapped|linked clone\(s\)|-migratable snapshot"
        r"|as it's a clone of|not supported aliased volumes|storage type '[^']{1,100}' not supported"
        r"|migration not possible| is not possible( on|$)|can't (snapshot|resize|rollback snapshot) this"
        r"|can't clone images|can't delete snapshot for|clone_image|resizing a snapshot|snapshot-as-volume-chain"
        r"|snapshots as a volume chain|do(es)? not support (snapshots|subvol quotas|mediated)|quotas are currently not"
        r"|working with qcow2 format only|no export formats for",
    ),
    # A command for QEMU's monitor, or a program that Proxmox has started, failed or took too long. The command or the
    # program may still be running.
    (
        "PVE_TIMEOUT",
        r"command '[^']{1,300}' failed - (got timeout|unable to connect|client closed)|- timeout after \d{1,9} retries"
        r"|\bgot (timeout|signal \d)|unable to connect to .{1,60} socket",
    ),
    (
        "TASK_FAILED",
        r"migration status|storage migration (for .{1,300} )?failed|query migrate failures|block job|mirroring error"
        r"|qmp command '[^']{1,100}' failed",
    ),
    (
        "INVALID_REQUEST",
        r"\b400 Bad Request|Parameter verification failed|Validation of arguments failed|Unsupported parameters"
        r"|must be one of|unable to convert to|missing required arguments|are missing:|is not a valid tag|shrink"
        r"|Finalization of task args|is undefined|not allowed for linked clones|bootorder|value too large"
        r"|resize a cdrom"
        r"|no options specified|reserved name|Unrecognized size pattern|missing disk"
        r"|disk '[^']{1,100}' (does not exist|has no)|does not support (vm images|containers|CT rootdirs)"
        r"|non-shared storage|uses local storage|content type|[Ee]ither 'host' or 'mapping'|both 'host' and 'mapping'"
        r"|unable to parse|no storage ID specified|not compatible|hotplug feature",
    ),
    (
        "INVALID_REQUEST",
        r"does not look like a|SSH public key validation|invalid (boot|bridge ID|characters in tag|VLAN)"
        r"|invalid (network interface|key in|range: |size|IP string)|VLAN range must|comma-separated list property"
        r"|is already defined"
        r"|contains (a line feed|illegal)|illegal (name|value)|interface name .{1,100} is|is too long"
        r"|MTU (size )?'\d{1,9}' is|unsupported format|storage format '|preallocation mode|already at specified size"
        r"|than max mem|memory can't be|minimum memory must|[Tt]otal memory|memory size|more vcpus than|be aligned to"
        r"|read-only option|required option|unable to change media type|move a cdrom|same storage with same format"
        r"|cloud-init drive is already|snippets too big|snippets directory|media parameter is required|not a CIDR"
        r"|detect-zeroes|Quotas are not supported|SLAAC|got strange (vlan tag|net id)|can't (allocate|free) space in"
        r"|is not executable|is not allowed in|not usable as VM image|look like a template archive|no such OS type"
        r"|vm vlans are not allowed",
    ),
    (
        "PLAYBOOK_FAILED",
        r"Failed to import the required Python library|module interpreter|resolve module/action"
        r"|unexpected keyword argument|has no attribute|deserialization failed|Action failed: Unknown error",
    ),
    ("TASK_TIMEOUT", r"Reached timeout|Timed out after \d{1,9} second|timeout expired"),
    (
        "TASK_FAILED",
        r"on task execution|task \w{1,100} ended|clone failed|start failed|QEMU exited|migration (aborted|problems)"
        r"|startup for container|job errors",
    ),
    ("PVE_API_ERROR", r"\b50[01] (Internal|Not)|the answer is longer than"),
)
