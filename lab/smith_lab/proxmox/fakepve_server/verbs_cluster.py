# SPDX-License-Identifier: AGPL-3.0-or-later
"""Implements the verbs of the control port that change faults, time, nodes, storages and access rights.

The control port is a port through which tests and the demo change the simulated cluster. A verb is the name of a
change, such as `fail`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smith_lab.proxmox.fakepve_server.bridge_access import DEFAULT_BRIDGES
from smith_lab.proxmox.fakepve_server.cluster import Cluster

#: The privilege for the guest agent's data in version 9, and in version 8.
GUEST_AGENT_PRIVILEGES = ("VM.GuestAgent.Audit", "VM.Monitor")


class ClusterVerbs:
    """Implements POST /<verb> by the method `do_<verb>`, whose parameters are the members of the request's JSON."""

    #: Set by the subclass ControlPort. `cluster.acl` contains the granted privileges by user or token. Root needs
    #: no granted privileges.
    cluster: Cluster

    def do_fail(
        self,
        *,
        method: str,
        path: str,
        status: int = 500,
        text: str = "injected",
        times: int = 1,
        after: bool = False,
        delay_s: float = 0,
        body: str | None = None,
        is_cut: bool = False,
    ) -> None:
        """Answer the next `times` matching requests with an error. If `status` is 0, close the connection instead.

        If `times` is -1, all matching requests fail. With `after`, each request is processed before the error is sent.
        `delay_s` is how long the error is delayed. `path` may contain shell wildcards. `body` (base64) replaces the
        body of the error. With `is_cut`, only the first half of the body is sent; then the connection closes.
        """
        fault = {"method": method, "path": path, "status": status, "text": text, "times": times}
        self.cluster.faults.append({**fault, "after": after, "delay_s": delay_s, "body": body, "is_cut": is_cut})

    def do_fail_task(
        self,
        *,
        type: str,
        text: str,
        times: int = 1,
        vmid: int | None = None,
        log: Sequence[str] = (),
        leaves_lock: str = "",
        after: bool = False,
    ) -> None:
        """Make the next `times` Proxmox tasks of a type (qmclone, resize, ...) fail after their usual time.

        If `times` is -1, all of them fail. If `vmid` is given, only Proxmox tasks of this guest fail; for a qmclone, it
        is the VMID of the template or of the clone. The failed Proxmox task writes the lines `log`. If `leaves_lock` is
        given, the guest keeps this lock. With `after`, the Proxmox task does its work before it fails.
        """
        fault = {"type": type, "text": text, "times": times, "vmid": vmid}
        self.cluster.task_faults.append({**fault, "log": list(log), "leaves_lock": leaves_lock, "after": after})

    def do_storage_locks(self, every: int) -> None:
        """Make Proxmox tasks that allocate a disk fail with a timeout of the storage's lock.

        If `every` is 3, every third of them fails. If it is 0, none fails for this reason.
        """
        self.cluster.allocations_per_lock_timeout, self.cluster.allocation_count = every, 0

    def do_disturb(self, disturbances: list[dict[str, Any]]) -> None:
        """Replace the disturbances that have not been applied yet.

        A disturbance changes a guest, or makes a request fail, when a given number of requests have arrived.
        Its members are the `kind` of the disturbance, the guest's `vmid`, and `requests`, the number of requests.
        """
        self.cluster.disturbances = [dict(disturbance) for disturbance in disturbances]

    def do_forget_tasks(self, vmid: int) -> None:
        """Remove the Proxmox tasks of a guest and their logs, as the rotation of the logs does."""
        self.cluster.forget_tasks(vmid)

    def do_logins(self, accepted: bool = True, delay_s: float | None = None) -> None:
        """Set whether credentials are accepted, and by how many seconds an answer 401 is delayed.

        With `accepted=False`, all credentials are refused, as while Proxmox's daemon pmxcfs restarts.
        """
        self.cluster.refuses_all_credentials = not accepted
        if delay_s is not None:
            self.cluster.delay_of_401_s = delay_s

    def do_user(self, user: str, enabled: bool) -> None:
        """Enable or disable a user, as `pveum user modify --enable` does."""
        self._set_login_usable(user, enabled)

    def do_token(self, token: str, expired: bool) -> None:
        """Make a token expire, or make it valid without an expiry, as `pveum user token modify --expire 0` does."""
        self._set_login_usable(token, not expired)

    def _set_login_usable(self, user_or_token: str, is_usable: bool) -> None:
        unusable = self.cluster.refused_users_and_tokens
        (unusable.discard if is_usable else unusable.add)(user_or_token)

    def do_certificate(self, certificate: str, key: str) -> None:
        """Present another certificate in new connections. The arguments are paths of PEM files."""
        self.cluster.tls_context.load_cert_chain(certificate, key)

    def do_remove_storage(self, storage: str) -> None:
        """Remove a storage from the configuration of the cluster."""
        del self.cluster.storages[storage]

    def do_remove_pool(self, pool: str) -> None:
        """Remove a pool."""
        del self.cluster.pools[pool]

    def do_add_storage(self, storage: str, **values: Any) -> None:
        """Add a storage, such as one of type `dir` with the content `images`. Every user and token may use it.

        Its member `files` contains the names of ISO images, and `volumes` the properties of each volume by name.
        """
        self.cluster.storages[storage] = {"active": 1, "files": set(), "volumes": {}, **values}
        for user_or_token in list(self.cluster.acl):
            self.cluster.grant(user_or_token, f"/storage/{storage}", "Datastore.AllocateSpace", "Datastore.Audit")

    def do_hold_change(self, number: int) -> None:
        """Process a later POST, PUT or DELETE request, but delay its answer until `do_clear_faults`.

        `number` selects the request: 1 is the next POST, PUT or DELETE request, 2 is the one after it.
        """
        self.cluster.changes_until_hold = number

    def do_hold(self, *, method: str, path: str) -> None:
        """Process the next request with this method and path, but delay the answer until `do_clear_faults`.

        `path` is a regular expression for the whole path.
        """
        self.cluster.request_to_hold = (method, path)

    def do_clear_faults(self) -> None:
        """Remove all faults, disturbances and delays, accept all valid credentials, and give the cluster quorum.

        Nodes, bridges, the options of the cluster and the interval of the statistics get their defaults again. Every
        node sends statistics again. Guests that a disturbance has hidden appear in the list `/cluster/resources` again.
        """
        self.cluster.faults.clear()
        self.cluster.task_faults.clear()
        self.cluster.allocations_per_lock_timeout = 0
        self.cluster.refuses_all_credentials = False
        self.cluster.refused_users_and_tokens.clear()
        self.cluster.delay_of_401_s = self.cluster.default_delay_of_401_s
        self.cluster.answer_delay_s = 0.0
        self.cluster.changes_until_hold, self.cluster.is_holding = 0, False
        self.cluster.request_to_hold = None
        self.cluster.quorate = True
        for state in self.cluster.nodes.values():
            state.update(online=True, maintenance=False, stats={})
        self.cluster.silent_nodes.clear()
        self.cluster.disturbances.clear()
        self.cluster.hidden_vmids.clear()
        self.cluster.statistics_interval_s = self.cluster.default_statistics_interval_s
        self.cluster.options.clear()
        self.do_bridges()

    def do_node(self, node: str, online: bool = True, maintenance: bool = False, **stats: float) -> None:
        """Set a node's state. An omitted value gets its default again.

        `stats` may contain the node's capacity (maxcpu, maxmem) and its use (cpu, mem).
        """
        self.cluster.nodes[node].update(online=online, maintenance=maintenance, stats=stats)
        if not online:
            self.cluster.forget_statistics(node)

    def do_add_node(self, node: str) -> None:
        """Add a node, which is online and has no guests."""
        self.cluster.add_node(node)

    def do_statistics(self, broadcast_interval_s: float | None = None, silent_nodes: Sequence[str] = ()) -> None:
        """Set the real seconds between two broadcasts of statistics, and which nodes send none.

        Each node broadcasts its statistics and those of its guests and storages to the cluster. Until the next
        broadcast, lists of guests, nodes and storages show the statistics of the last one. The simulated cluster
        drops the statistics of silent nodes at once. A real cluster drops them 5 minutes after the last broadcast.
        """
        if broadcast_interval_s is not None:
            self.cluster.statistics_interval_s = broadcast_interval_s
        self.cluster.silent_nodes = set(silent_nodes)
        for node in silent_nodes:
            self.cluster.forget_statistics(node)

    def do_vnet(self, name: str, zone: str) -> None:
        """Add a VNet to an SDN zone. If `zone` is empty, remove the VNet."""
        self.cluster.vnets[name] = zone
        if not zone:
            del self.cluster.vnets[name]

    def do_add_pool(self, pool: str) -> None:
        """Add a pool without guests."""
        self.cluster.pools.setdefault(pool, set())

    def do_add_user(self, user: str, password: str, privileges: Sequence[str] = ()) -> None:
        """Add a user with a password, and with privileges on `/`."""
        self.cluster.add_account(user)
        self.cluster.users[user] = password
        self.cluster.grant(user, "/", *privileges)

    def do_second_factor(self, code: str) -> None:
        """Require this TOTP code at every login with a password. If `code` is empty, require no code."""
        self.cluster.totp_code = code

    def do_options(self, **options: Any) -> None:
        """Replace the options of the cluster that limit which tags a user may set.

        The options are `user_allow` (free, existing, list or none), `user_allow_list` and `registered_tags`.
        """
        self.cluster.options = {name.replace("_", "-"): value for name, value in options.items()}

    def do_bridges(self, bridges: Sequence[str] = DEFAULT_BRIDGES, unlisted: Sequence[str] = ()) -> None:
        """Set the bridges of every node.

        The bridges in `unlisted` exist, but Proxmox does not list them. A bridge that is defined in
        /etc/network/interfaces.d is such a bridge.
        """
        self.cluster.bridges, self.cluster.unlisted_bridges = set(bridges), set(unlisted)

    def do_quorum(self, quorate: bool) -> None:
        """Set whether the cluster has quorum."""
        self.cluster.quorate = quorate

    def do_slow(self, seconds: float) -> None:
        """Delay every answer by this number of real seconds."""
        self.cluster.answer_delay_s = seconds

    def do_time_scale(self, scale: float) -> None:
        """Set how many real seconds a Proxmox second (a second of simulated time) is.

        With 0, every Proxmox task ends at once.
        """
        self.cluster.time_scale = scale

    def do_task_seconds(self, type: str, seconds: float) -> None:
        """Set how many Proxmox seconds a Proxmox task of this type takes."""
        self.cluster.task_seconds[type] = seconds

    def do_storage(self, storage: str, **values: Any) -> None:
        """Set values of a storage, such as `avail` (its free bytes) or `active`."""
        self.cluster.storages[storage].update(values)

    def do_fill(self, storage: str, left: int) -> None:
        """Fill a storage, as if by another client, so that `left` bytes are free. `do_end_fill` removes the data."""
        self.do_end_fill(storage)
        values = self.cluster.storages[storage]
        self.cluster.filled_bytes[storage] = values["avail"] - left
        values["avail"] = left

    def do_end_fill(self, storage: str) -> None:
        """Remove the data with which `do_fill` has filled a storage."""
        self.cluster.storages[storage]["avail"] += self.cluster.filled_bytes.pop(storage, 0)

    def do_unremovable(self, volume: str) -> None:
        """Make a volume stay when its VM is destroyed, as if the storage reported that the volume is in use."""
        self.cluster.unremovable_volumes.add(volume)

    def do_version(self, version: str) -> None:
        """Set the version of Proxmox VE.

        In version 8, the privilege for the guest agent's data has another name. So this privilege is renamed wherever
        it is granted.
        """
        self.cluster.version = version
        old_name, new_name = GUEST_AGENT_PRIVILEGES if version.startswith("8.") else reversed(GUEST_AGENT_PRIVILEGES)
        for _path, privileges in [entry for entries in self.cluster.acl.values() for entry in entries]:
            if old_name in privileges:
                privileges.symmetric_difference_update({old_name, new_name})

    def do_revoke(self, path: str, privilege: str) -> None:
        """Remove one privilege on a path from every user and token except root."""
        for entries in self.cluster.acl.values():
            for granted_path, privileges in entries:
                if granted_path == path:
                    privileges.discard(privilege)

    def do_grant(self, path: str, privilege: str) -> None:
        """Grant one privilege on a path to every user and token except root."""
        for user_or_token in list(self.cluster.acl):
            self.cluster.grant(user_or_token, path, privilege)

    def do_token_secret(self, secret: str) -> None:
        """Replace the secret of every token."""
        for token in self.cluster.apitokens:
            self.cluster.apitokens[token] = secret

    def do_reset_requests(self) -> None:
        """Empty the request log."""
        self.cluster.request_log.clear()
