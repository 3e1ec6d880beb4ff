# SPDX-License-Identifier: AGPL-3.0-or-later
"""Combines the Proxmox simulation fakepve and all additions of this package into the cluster of the stand-in."""

from __future__ import annotations

from smith_lab.proxmox.fakepve_server.access_requests import AccessRequests
from smith_lab.proxmox.fakepve_server.backups import Backups
from smith_lab.proxmox.fakepve_server.cloud_init import CloudInitDrives
from smith_lab.proxmox.fakepve_server.cluster_options import ClusterOptions
from smith_lab.proxmox.fakepve_server.config_refusals import ConfigChangeChecks
from smith_lab.proxmox.fakepve_server.disturbances import DisturbancesByRequestCount
from smith_lab.proxmox.fakepve_server.faults import RequestFaults
from smith_lab.proxmox.fakepve_server.features import SnapshotAndCloneSupportRequests
from smith_lab.proxmox.fakepve_server.guests import GuestAgentAndUsage
from smith_lab.proxmox.fakepve_server.listener import HttpsPort
from smith_lab.proxmox.fakepve_server.networks import Networks
from smith_lab.proxmox.fakepve_server.operations import DiskAndNodeOperations
from smith_lab.proxmox.fakepve_server.partial_clones import PartialClones
from smith_lab.proxmox.fakepve_server.power import PowerRequests
from smith_lab.proxmox.fakepve_server.refused_requests import CredentialAndPathChecks
from smith_lab.proxmox.fakepve_server.rollbacks import Rollbacks
from smith_lab.proxmox.fakepve_server.setup_reads import CertificateRequests
from smith_lab.proxmox.fakepve_server.statistics import Statistics
from smith_lab.proxmox.fakepve_server.task_answers import TaskStatusAndLogs
from smith_lab.proxmox.fakepve_server.task_requests import ChecksInProxmoxTasks


class Cluster(
    DisturbancesByRequestCount,
    CredentialAndPathChecks,
    RequestFaults,
    AccessRequests,
    CertificateRequests,
    TaskStatusAndLogs,
    Statistics,
    PartialClones,
    ChecksInProxmoxTasks,
    Networks,
    SnapshotAndCloneSupportRequests,
    PowerRequests,
    Rollbacks,
    ClusterOptions,
    ConfigChangeChecks,
    CloudInitDrives,
    DiskAndNodeOperations,
    Backups,
    GuestAgentAndUsage,
    HttpsPort,
):
    """The simulated cluster. Each base class adds functions of one area to the class FakePve.

    FakePve is the simulation of Proxmox in the library fakepve. Tests add faults and disturbances: a request that
    matches a fault fails, and a disturbance changes a guest, or makes a request fail, after a given number of requests.
    """
