# SPDX-License-Identifier: Apache-2.0
"""The lab: hosts as network namespaces, endpoint servers of known capacity, traffic shaped by traces."""
