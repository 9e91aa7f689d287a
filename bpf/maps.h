/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every map, a line each: meaning; writer; reader. Sizes come as -D from the
 * loader: MAX_SERVICES, MAX_ENDPOINTS, MAX_BUCKETS, MAX_RING_LINES, MAX_CPUS,
 * MAX_FRAGMENTS, MAX_ROUTE_MTUS, and the target tables' buckets, powers of two:
 * SERVICE_BUCKETS, ENDPOINT_BUCKETS.
 * Arrays are mmapable: user space reads and writes them without system calls.
 */
#ifndef PENUMBRA_MAPS_H
#define PENUMBRA_MAPS_H

#include "capture.h"
#include "note.h"
#include "structs.h"

/* How the program behaves; loader writes, program reads. */
BPF_F_TABLE("array", u32, struct settings, settings, 1, BPF_F_MMAPABLE);
/* VIP, protocol, port -> index of the service; user space; program. */
BPF_F_TABLE("array", u32, struct target_bucket, service_targets, SERVICE_BUCKETS, BPF_F_MMAPABLE);
/* VIPs, whatever the port, port and protocol zero -> services; user space; program. */
BPF_TABLE("hash", struct target, u32, vips, MAX_SERVICES);
/* Services by index; user space; program. */
BPF_F_TABLE("array", u32, struct service, services, MAX_SERVICES, BPF_F_MMAPABLE);
/* Endpoint's address, protocol, port -> its index: who sent a return; user space; program. */
BPF_F_TABLE("array", u32, struct target_bucket, endpoint_targets, ENDPOINT_BUCKETS, BPF_F_MMAPABLE);
/* Endpoints by index; user space; program. */
BPF_F_TABLE("array", u32, struct endpoint, endpoints, MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* Maglev rings of all services, two copies each; user space; program. */
BPF_F_TABLE("array", u32, struct ring_line, rings, MAX_RING_LINES, BPF_F_MMAPABLE);
/* The shadow table: slots of each live endpoint; user space; program. */
BPF_F_TABLE("array", u32, struct shadow_slots, shadow_table, MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* Each endpoint's limit, and how much of it is used up; user space, program; program. */
BPF_F_TABLE("array", u32, struct limit, limits, MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* The flow cache; program; program, CLI. */
BPF_F_TABLE("array", u32, struct bucket, flows, MAX_BUCKETS, BPF_F_MMAPABLE);
/* The 5-tuples of the flow cache, cold; program; program on SYN, CLI. */
BPF_F_TABLE("array", u32, struct bucket_keys, flow_keys, MAX_BUCKETS, BPF_F_MMAPABLE);
/* Where fragmented packets went, the latest so many; program; program. */
BPF_TABLE("lru_hash", struct fragment_key, struct fragment, fragments, MAX_FRAGMENTS);
/* [cpu][endpoint] counters; program; user space. */
BPF_F_TABLE("array", u32, struct endpoint_counters, counters, MAX_CPUS * MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* [cpu][endpoint] traffic to it; program; user space. */
BPF_F_TABLE("array", u32, struct traffic, forwarded, MAX_CPUS * MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* [cpu][endpoint] traffic from it to clients; program; user space. */
BPF_F_TABLE("array", u32, struct traffic, returned, MAX_CPUS * MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* What an endpoint's counters were, of all CPUs, when it was installed; user space; user space. */
BPF_F_TABLE("array", u32, struct baseline, baselines, MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* Interfaces that the program is attached to, by interface_row(); user space; program. */
BPF_F_TABLE("array", u32, struct interface, interfaces, INTERFACE_ROWS, BPF_F_MMAPABLE);
/* [cpu][interface] packets by reason; program; user space. */
BPF_F_TABLE("array", u32, struct reasons, reasons, MAX_CPUS * INTERFACE_ROWS, BPF_F_MMAPABLE);
/* [cpu][interface] frames redirected to it; redirects.c; user space. */
BPF_F_TABLE("array", u32, struct redirects, redirects, MAX_CPUS * INTERFACE_ROWS, BPF_F_MMAPABLE);
/* Who answers packets that can't go on: refuse.c, of the same build; loader; program. */
BPF_PROG_ARRAY(refusals, 1);
/* What counts them; loader; redirects.c. */
BPF_PROG_ARRAY(redirect_programs, REDIRECT_PROGRAMS);
/* SYN to SYN-ACK time of each endpoint, one copy for all CPUs; program; user space. */
BPF_F_TABLE("array", u32, struct histogram, rtt, MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* [cpu][endpoint] counters of requests; program; user space. */
BPF_F_TABLE("array", u32, struct request_counters, request_counters, MAX_CPUS * MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* As baselines; user space; user space. */
BPF_F_TABLE("array", u32, struct request_counters, request_baselines, MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* Request to first byte of its answer, of each endpoint, one copy; program; user space. */
BPF_F_TABLE("array", u32, struct histogram, response, MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* Destinations that endpoints may answer as themselves; user space; program. */
BPF_F_TABLE("lpm_trie", struct prefix, u32, direct, MAX_DIRECT, BPF_F_NO_PREALLOC);
/*
 * Destination -> bytes of IP packet that its route takes, where routes have an MTU
 * of their own; 0: this one has none; user space; program.
 */
BPF_F_TABLE("lpm_trie", struct prefix, u32, route_mtus, MAX_ROUTE_MTUS, BPF_F_NO_PREALLOC);
/* [IP version: 0 for 4, 1 for 6] the way to most clients; user space; program. */
BPF_F_TABLE("array", u32, struct gateway, gateways, 2, BPF_F_MMAPABLE);
/*
 * [IP version] hash_near() bits of what other routes cover, of direct prefixes and
 * of VIPs; user space; program.
 */
BPF_F_TABLE("array", u32, u64, near, 2 * NEAR_WORDS, BPF_F_MMAPABLE);
/*
 * Ifindex -> how frames leave by it: interfaces that take redirected frames, and
 * VLAN devices on top of them. A fib lookup that names another one (a bridge, a
 * veth whose peer has neither XDP nor GRO) leaves the packet to the kernel, for
 * redirecting it would lose it; user space; program.
 */
BPF_TABLE("hash", u32, struct port, ports, 1024);
/* Interface and tags -> index of the VLAN device on top of it; user space; program. */
BPF_TABLE("hash", struct port_key, u32, vlans, 1024);
/* [cpu] coarse clock, limits; program; program, user space. */
BPF_F_TABLE("array", u32, struct cpu, cpus, MAX_CPUS, BPF_F_MMAPABLE);
/* Rate limit of events per endpoint; program; program. */
BPF_F_TABLE("array", u32, struct event_gate, event_gates, MAX_ENDPOINTS, BPF_F_MMAPABLE);
/* What happened, for people; program; user space. */
BPF_RINGBUF_OUTPUT(events, 16);
/* Names and weights; user space; user space. */
BPF_F_TABLE("array", u32, struct label, endpoint_labels, MAX_ENDPOINTS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct label, service_labels, MAX_SERVICES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct label, interface_labels, INTERFACE_ROWS, BPF_F_MMAPABLE);

#if DRY_RUN
/* What the last packet's way was; program; user space. */
BPF_F_TABLE("array", u32, struct trace, traces, 1, BPF_F_MMAPABLE);
#endif
#if CAPTURE
/* Which packets are captured; user space; program. */
BPF_F_TABLE("array", u32, struct capturing, capture_wanted, 1, BPF_F_MMAPABLE);
/* [cpu] the present packet, and what was lost; program; program, user space. */
BPF_F_TABLE("array", u32, struct capture_cpu, capture_cpus, MAX_CPUS, BPF_F_MMAPABLE);
/* The frames; program; user space. */
BPF_RINGBUF_OUTPUT(captured, 1);
#endif

#endif
