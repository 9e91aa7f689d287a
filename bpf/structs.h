/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Keys and values of every map: the contract between the program and user
 * space. Padding is explicit and sizes are asserted; Python's numpy dtypes
 * (controlplane/adapters/layout.py) are held equal to these field by field
 * by tests/packet/test_layout.py.
 */
#ifndef PENUMBRA_STRUCTS_H
#define PENUMBRA_STRUCTS_H

/* Addresses are 16 bytes; IPv4 is mapped (::ffff:a.b.c.d, RFC 4291 2.5.5.2). */
#define ADDRESS_WORDS 4
#define V4_WORD 3
#define V4_MAPPED_PREFIX bpf_htonl(0xffff)

/*
 * By these what is read as words may be written as halves: else the compiler
 * may take it for never written, and leave out a check of it.
 */
typedef u64 __attribute__((may_alias)) u64_alias;
typedef u32 __attribute__((may_alias)) u32_alias;

#define BUCKET_FLOWS 4		/* flows in one 64-byte bucket */
#define RING_LINE_CELLS 16	/* ring cells in one 64-byte line */
#define SHADOW_SLOTS 128	/* slots of one live endpoint's shadow table */
#define HISTOGRAM_SUB 16	/* sub-buckets per octave */
#define HISTOGRAM_BUCKETS 336	/* 16 linear + 20 octaves: 1 us to 16.8 s */
#define REASON_SLOTS 64
#define NAME_BYTES 48
#define INTERFACE_ROWS 256	/* counters' rows of interfaces: interface.h */
#define INTERFACE_SHIFT 24	/* 32 - log2 of INTERFACE_ROWS */
#define OTHER_INTERFACES 0	/* the row of those that have none */

/*
 * One tick is 2^28 ns (268 ms) of CLOCK_MONOTONIC: coarse enough that a busy
 * flow's last-seen is stored four times a second, not once a packet.
 */
#define TICK_SHIFT 28

/*
 * A reference names an endpoint's index and the generation of that index:
 * {generation:12 | index:20}. 0 names nobody, so index 0 is never given out.
 */
#define REF_INDEX_BITS 20
#define REF_INDEX_MASK ((1U << REF_INDEX_BITS) - 1)
#define REF_GENERATION_MASK 0xfffU

#define SPILL_ALL 0xffffffffU

/* What an endpoint's limit is counted in, from the coarse clock like ticks. */
#define WINDOW_NS 100000000ULL
#define LIMIT_WINDOW 32			/* struct limit.used: {window:32 | flows:32} */

enum role {
	ROLE_LIVE = 1,
	ROLE_SHADOW = 2,
};

/* struct endpoint.state, low 32 bits; the high 32 bits are the generation. */
#define ENDPOINT_PRESENT (1U << 0)
#define ENDPOINT_DOWN (1U << 1)
#define ENDPOINT_DRAINING (1U << 2)
#define ENDPOINT_EVICTED_SHIFT 8	/* of 256 of its flows so many are misses, by their tags */
#define ENDPOINT_EVICTED (0xffU << ENDPOINT_EVICTED_SHIFT)

/* struct service.flags */
#define SERVICE_PRESENT (1U << 0)
#define SERVICE_ON_DOWN_KEEP (1U << 1)	/* else reset: flows of a down endpoint move */
#define SERVICE_AFFINITY (1U << 2)	/* a client's flows go alike: by its address alone */
#define SERVICE_REQUESTS_HTTP1 (1U << 3) /* any payload is a request's or a response's */
#define SERVICE_REQUESTS_TLS (1U << 4)	/* application data only */
#define SERVICE_REQUESTS (SERVICE_REQUESTS_HTTP1 | SERVICE_REQUESTS_TLS)

/* struct flow.life, bits 24..31 */
#define FLOW_SYN (1U << 0)	/* the client's SYN was seen */
#define FLOW_SYNACK (1U << 1)	/* the endpoint's SYN-ACK was seen */
#define FLOW_ESTABLISHED (1U << 2) /* handshake done, or the endpoint answered */
#define FLOW_FIN_CLIENT (1U << 3)
#define FLOW_FIN_ENDPOINT (1U << 4)
#define FLOW_RST (1U << 5)
#define FLOW_MIDSTREAM (1U << 6) /* TCP, first seen without its SYN */
#define FLOW_REQUEST (1U << 7)	/* a request is in flight; the stamp is its time */

#define DESTINATION_BITS 14	/* of hash_destination() */
#define DESTINATION_WORDS ((1U << DESTINATION_BITS) / 64)
#define NEAR_WORDS (65536 / 64)	/* of one IP version's hash_near() */

struct settings {
	__u64 layout;		/* hash of this layout; always the first field */
	__u64 source;		/* hash of what the program was compiled from */
	__u64 hash_key[2];	/* one key per fleet; root only, never printed */
	__u32 bucket_mask;	/* buckets of the flow cache - 1 */
	__u32 idle_opening_ticks; /* idle limit until the handshake is done */
	__u32 idle_established_ticks;
	__u32 idle_closing_ticks; /* after a FIN or RST */
	__u32 idle_udp_ticks;
	__u32 event_ticks;	/* least time between two events of a kind and endpoint */
	__u64 own_sources;	/* hash_source() bits of VIPs and of this host's addresses */
	__u64 zero;		/* is 0, which the verifier can't know: forget() */
	__u32 seen_ticks;	/* a flow's last seen is stored when it is older than this */
	__u32 insert_limit;	/* new flows remembered, per CPU and tick: the flood's bound */
	__u32 icmp_limit;	/* ICMP errors of our own, per CPU and tick */
	__u32 interface_multiplier; /* interface_row() */
	__u32 frags;		/* 1: the program takes frames in several buffers */
	__u32 pad;
	__u64 destinations[DESTINATION_WORDS]; /* hash_destination() bits of services */
};
_Static_assert(sizeof(struct settings) == 2144, "settings");

/* A service's VIP, or an endpoint: where packets are sent to. */
struct target {
	__be32 address[ADDRESS_WORDS];
	__be16 port;
	__u8 protocol;
	__u8 pad;
};
_Static_assert(sizeof(struct target) == 20, "target");

/*
 * Where targets are looked up: each has a home among the buckets and one other,
 * by its keyed hash, and lies in either. An entry is {fingerprint:32 | index:32},
 * 0: empty; the row that it names says whether it is the one asked for. A hash
 * map would cost 37 to 56 ns, this one a cache line.
 */
#define TARGET_WAYS 8

struct target_bucket {
	__u64 entry[TARGET_WAYS];
};
_Static_assert(sizeof(struct target_bucket) == 64, "target_bucket");

struct service {
	__be32 vip[ADDRESS_WORDS];
	__be16 port;
	__u8 protocol;
	__u8 flags;
	__u32 ring_base;	/* first cell of copy 0; copy 1 is ring_size on */
	__u32 ring_size;	/* cells of one copy, prime; 0: no ring yet */
	__u32 ring_active;	/* 0 or 1: the copy in use; flipping it is the swap */
	__u32 request_shift;	/* one in 2^this of the requests is timed */
	__u32 pad[7];
};
_Static_assert(sizeof(struct service) == 64, "service");

/* All that a hit needs of an endpoint, in one cache line. */
struct endpoint {
	__be32 address[ADDRESS_WORDS];
	__be16 port;
	__u8 protocol;
	__u8 role;
	__u32 service;		/* index into services */
	__u64 state;		/* {generation:32 | flags:32}, one store */
	__u32 spill;		/* share of new flows for shadows, of 2^32; SPILL_ALL: all */
	__u32 parent;		/* index of a shadow's live endpoint; a live one's own */
	__u32 hop_expires;	/* tick past which the next hop is not trusted; 0: none */
	__u32 hop_ifindex;
	__u8 hop_dst[6];
	__u8 hop_src[6];
	__be16 hop_vlan;	/* 0: untagged */
	__u16 hop_mtu;		/* bytes of IP packet; 0: unknown */
};
_Static_assert(sizeof(struct endpoint) == 64, "endpoint");

/*
 * The default route's next hop, of one IP version: towards clients that no other
 * route covers. Fields as an endpoint's.
 */
struct gateway {
	__u32 hop_expires;
	__u32 hop_ifindex;
	__u8 hop_dst[6];
	__u8 hop_src[6];
	__be16 hop_vlan;
	__u16 hop_mtu;
	__u32 pad[2];
};
_Static_assert(sizeof(struct gateway) == 32, "gateway");

/* One that the program is attached to: whose row of the counters this is. */
struct interface {
	__u32 ifindex;		/* 0: nobody's now */
	__u32 netns;		/* inode of its network namespace */
};
_Static_assert(sizeof(struct interface) == 8, "interface");

#define TAGS_MAX 2		/* VLAN tags of a frame: 802.1Q, QinQ */

/* Where frames that came with these tags belong: to a VLAN device of this host. */
struct port_key {
	__u32 ifindex;		/* what they came in by */
	__be16 vlan[TAGS_MAX];	/* VID, outer first; 0: none */
};
_Static_assert(sizeof(struct port_key) == 8, "port_key");

/* How frames leave by a device: by which interface, with which tags. */
struct port {
	__u32 ifindex;
	__be16 vlan[TAGS_MAX];	/* VID, outer first; 0: none */
	__be16 protocol[TAGS_MAX]; /* of the tags: 802.1Q or 802.1ad */
};
_Static_assert(sizeof(struct port) == 12, "port");

struct ring_line {
	__u32 cell[RING_LINE_CELLS]; /* references of live endpoints */
};
_Static_assert(sizeof(struct ring_line) == 64, "ring_line");

/* New flows of an endpoint in the present window, of all CPUs. */
struct limit {
	__u64 used;		/* {window:32 | flows given in it:32}; atomics only */
	__u32 limit;		/* flows in one window, at most 2^31; 0: none */
	__u32 pad;
};
_Static_assert(sizeof(struct limit) == 16, "limit");

struct shadow_slots {
	__u32 slot[SHADOW_SLOTS]; /* references; 0: empty */
};
_Static_assert(sizeof(struct shadow_slots) == 512, "shadow_slots");

struct flow {
	__u64 id;		/* {tag:32 | reference:32}, 0: empty; cmpxchg only */
	__u64 life;		/* {last seen tick:32 | FLOW_*:8 | stamp:24} */
};

struct bucket {
	struct flow flow[BUCKET_FLOWS];
};
_Static_assert(sizeof(struct bucket) == 64, "bucket");

/* The cold half of a flow: what its hash was made of. */
struct flow_key {
	__be32 client[ADDRESS_WORDS];
	__be16 client_port;
	__u16 pad;
	__u32 service;		/* index into services: VIP, protocol, port */
};
_Static_assert(sizeof(struct flow_key) == 24, "flow_key");

struct bucket_keys {
	struct flow_key key[BUCKET_FLOWS];
};
_Static_assert(sizeof(struct bucket_keys) == 96, "bucket_keys");

/* What the fragments of one packet have in common (RFC 791, RFC 8200). */
struct fragment_key {
	__be32 source[ADDRESS_WORDS];
	__be32 destination[ADDRESS_WORDS];
	__be32 id;
	__u32 protocol;		/* IPv4's; 0 for IPv6 */
};
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");

/* Where the first of them went. */
struct fragment {
	__u32 ref;		/* of its endpoint; 0: to the client, from the VIP */
	__u32 service;		/* index */
	__u32 endpoint;		/* index: whose traffic it is */
	__u32 tick;
};
_Static_assert(sizeof(struct fragment) == 16, "fragment");

/*
 * What every packet counts, of one endpoint on one CPU and one direction. By
 * themselves, four in a line: thousands of endpoints' stay in the cache. User
 * space never zeroes: it takes baselines.
 */
struct traffic {
	__u64 packets;
	__u64 bytes;		/* of IP packets */
};
_Static_assert(sizeof(struct traffic) == 16, "traffic");

/* What is rarer; what a flood counts comes first, in one line. */
struct endpoint_counters {
	__u64 flows;		/* new flows this endpoint was given */
	__u64 offered;		/* group: new flows the ring chose it for, before spill */
	__u64 unremembered;	/* found no place in the cache: TCP SYNs, which count as
				   offered too; UDP packets, which count as nothing else */
	__u64 midstream;	/* group: TCP packets of unknown flows without SYN */
	__u64 completed;	/* group: of those, handshake done or UDP answered */
	__u64 spilled;		/* group: of those offered, given to a shadow */
	__u64 resets;		/* RST from the endpoint */
	__u64 fins;		/* flows closed from both sides */
	__u64 rtt_count;	/* SYN to SYN-ACK samples */
	__u64 rtt_sum_us;
	__u64 limited;		/* new flows that went elsewhere: its limit was reached */
	__u64 pad;
};
_Static_assert(sizeof(struct endpoint_counters) == 96, "endpoint_counters");

/* All of them when the endpoint was installed, of all CPUs; never read here. */
struct baseline {
	struct traffic forwarded;
	struct traffic returned;
	struct endpoint_counters counted;
};
_Static_assert(sizeof(struct baseline) == 128, "baseline");

/* One endpoint on one CPU, of services whose requests are watched. */
struct request_counters {
	__u64 requests;		/* started */
	__u64 answered;
	__u64 aborted;		/* RST, the endpoint's FIN, or the flow was forgotten */
	__u64 response_count;	/* answered ones that were timed */
	__u64 response_sum_us;
	__u64 pad[3];
};
_Static_assert(sizeof(struct request_counters) == 64, "request_counters");

struct histogram {
	__u32 bucket[HISTOGRAM_BUCKETS];
};
_Static_assert(sizeof(struct histogram) == 1344, "histogram");

/*
 * Why a packet left as it did: one counter each, one place that counts.
 * X(name): expected ones first; from "broken" on we expect none.
 */
#define REASONS(X) \
	X(forward_hop)		/* to an endpoint by its cached next hop */ \
	X(forward_fib)		/* to an endpoint by fib lookup */ \
	X(forward_kernel)	/* rewritten, then left to the kernel to forward */ \
	X(forward_cut)		/* the same, for it is too large: to be fragmented */ \
	X(return_hop)		/* to a client by the cached gateway */ \
	X(return_fib)		/* to a client by fib lookup */ \
	X(return_kernel)	/* rewritten, then left to the kernel to forward */ \
	X(return_cut)		/* the same, for it is too large: to be fragmented */ \
	X(reply_echo)		/* a VIP's answer to an echo request */ \
	X(reply_ttl)		/* an ICMP error of our own: time exceeded */ \
	X(reply_mtu)		/* an ICMP error of our own: too large for the next hop */ \
	X(pass_other)		/* neither to a VIP nor a return */ \
	X(pass_direct)		/* from an endpoint to a direct destination */ \
	X(pass_not_ip)		/* neither IP nor a protocol named below */ \
	X(pass_vlan)		/* a VLAN that this host has no device for */ \
	X(pass_icmp)		/* not to a VIP, nor an error about a steered flow */ \
	X(pass_fragment)	/* a later one, neither to a VIP nor of a return */ \
	X(pass_ttl)		/* TTL ends here, and refuse.c is not there: the kernel answers */ \
	X(pass_mtu)		/* the same of what is too large and not to be fragmented */ \
	X(drop_vip_port)	/* a VIP, but no such service: passing would loop */ \
	X(drop_no_endpoint)	/* a service without any endpoint */ \
	X(drop_broken)		/* ours, but malformed */ \
	X(drop_fragment)	/* to a VIP, but its first one is not known */ \
	X(drop_source)		/* to a service, from where no client can be */ \
	X(drop_ttl)		/* TTL ends here, and nothing that gets an ICMP error */ \
	X(drop_mtu)		/* too large, and nothing that gets an ICMP error */ \
	X(drop_icmp_limit)	/* an ICMP error was due, past the limit of them */ \
	X(abort_impossible)	/* a map without an entry that must exist */

enum reason {
#define REASON_ENUM(name) REASON_##name,
	REASONS(REASON_ENUM)
#undef REASON_ENUM
	REASON_COUNT,
};
_Static_assert(REASON_COUNT <= REASON_SLOTS, "reasons");

struct reasons {
	__u64 count[REASON_SLOTS];
};

/* What became of frames that were redirected to one interface: redirects.c. */
struct redirects {
	__u64 sent;		/* taken by its driver */
	__u64 lost;		/* not taken by it */
	__u64 refused;		/* not given to it */
	__u32 error;		/* errno of the last loss; 0: none was named */
	__u32 error_tick;	/* when that was; 0: never */
};
_Static_assert(sizeof(struct redirects) == 32, "redirects");

/* Places in redirect_programs. */
#define REDIRECT_SENT 0
#define REDIRECT_REFUSED 1
#define REDIRECT_PROGRAMS 2

/* Things seen beside the verdict; these may overlap with each other. */
enum event_kind {
	EVENT_REDIRECTED = 0,	/* redirected to shadow */
	EVENT_NO_SHADOW = 1,	/* no shadow available, primary kept */
	EVENT_ENDPOINT_DOWN = 2, /* endpoint down, its packet went elsewhere */
	EVENT_LIMITED = 3,	/* its limit was reached, the flow went elsewhere */
	EVENT_KINDS = 4,
};

struct event {
	__u64 time_ns;		/* CLOCK_MONOTONIC */
	__u32 kind;
	__u32 service;		/* index */
	__u32 endpoint;		/* index: the live endpoint the ring chose, or the
				   one that is down, or whose limit was reached */
	__u32 chosen;		/* index: the one the flow was given; 0: none yet */
	__be32 client[ADDRESS_WORDS];
	__be16 client_port;
	__u16 pad;
	__u32 pad2;
};
_Static_assert(sizeof(struct event) == 48, "event");

/* What is one CPU's own: the time, good as long as jiffies stand still; its limits. */
struct cpu {
	__u64 jiffies;
	__u32 tick;
	__u32 insert_tick;	/* of which :inserted counts */
	__u32 inserted;
	__u32 icmp_tick;	/* of which :icmp_sent counts */
	__u32 icmp_sent;
	__u32 flood_tick;	/* the last one in which :flooded grew */
	__u64 flooded;		/* new flows not remembered for the limit's sake */
	__u64 floods;		/* ticks in which there were such */
	__u32 window;		/* the time in units of WINDOW_NS */
	__u32 refused_mtu;	/* of the present packet, for refuse.c; 0: its TTL has ended */
	__u32 pad[2];
};
_Static_assert(sizeof(struct cpu) == 64, "cpu");

/* Tick of the last event of each kind: the rate limit. */
struct event_gate {
	__u32 tick[EVENT_KINDS];
};

/* What user space remembers beside an endpoint or service; never read here. */
struct label {
	char name[NAME_BYTES];
	__u32 weight;		/* ring weight in thousandths */
	__u32 removed_tick;	/* when it was removed; its index rests for a while */
	__u32 pad[2];
};
_Static_assert(sizeof(struct label) == 64, "label");

/* Value of a direct prefix. */
#define DIRECT_OWN 2U		/* this host's own address; else 1 */

struct prefix {
	__u32 length;		/* bits, of the mapped address: 96 + n for IPv4 */
	__be32 address[ADDRESS_WORDS];
};

#endif
