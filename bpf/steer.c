/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The packet's path: parse -> service -> flow or ring -> rewrite -> verdict.
 * The programs, what all of them look up, and where a packet goes first; the
 * rest lies in its parts, included below. Headers know no map, except maps.h,
 * which declares them. Every path ends in an enum reason, and leave() alone
 * counts it and turns it into a verdict.
 */
#include <linux/types.h>

#include "maps.h"
#include "parse.h"
#include "endpoint.h"
#include "flow.h"
#include "fragment.h"
#include "hash.h"
#include "histogram.h"
#include "icmp.h"
#include "interface.h"
#include "limit.h"
#include "note.h"
#include "refuse.h"
#include "request.h"
#include "rewrite.h"
#include "route.h"
#include "store.h"
#include "target.h"

#define NOWHERE BUCKET_FLOWS
#define CANDIDATES (2 * BUCKET_FLOWS)	/* entries a flow may lie in */
#define SLOT_TRIES 16			/* shadow slots looked at for a usable one */
#define SLOT_STRIDE 53			/* odd: passes over neighbours alike */
#define HANDSHAKES_TIMED 2048		/* per CPU and tick; then one in */
#define HANDSHAKE_SHARE 8
#define RING_TRIES 8			/* ring slots looked at when one is down */

/* What every step needs to know besides the packet. */
struct here {
	struct xdp_md *ctx;
	struct settings *settings;
	u32 cpu;
	u32 tick;
	u32 ifindex;		/* what the packet came in by, a VLAN's device too */
	volatile bool no_client; /* the packet's source is none */
#if DRY_RUN
	struct trace *trace;
#endif
};

/* Where a flow lies, or may lie, in the cache. */
struct place {
	struct flow *flow;	/* NULL: nowhere */
	u64 id;			/* as it was read */
	u32 bucket;
	u32 way;
	struct flow *moved;	/* where that one stands too, to make room here */
};

/* The endpoint that a flow was given; ref 0: none. */
struct choice {
	u32 ref;
	u32 hashed;		/* the one by hash alone, whatever the limits */
	u32 live;		/* index that the ring chose; 0: none */
	u32 spilled;		/* by the live one's slots; else 0 */
};

/*
 * The verifier goes down every path once for each constant it knows there:
 * added to what it can't know, they are one.
 */
static __always_inline u64 forget(struct here *here, u64 value)
{
	return value + here->settings->zero;
}

#include "capture.c"

/* One step of a decision, in a build that tells: see NOTE(). */
static __always_inline void note(struct here *here, enum note kind, u32 a,
				 u64 b)
{
#if DRY_RUN
	u32 at = here->trace->count++;
	struct note_row *row = &here->trace->row[at % NOTES_MAX];

	if (at >= NOTES_MAX)
		return;
	row->kind = kind;
	row->a = a;
	row->b = b;
#elif CAPTURE
	capture_note(here, kind, a);
#endif
}

/* False: nobody would hear of it. */
static __always_inline bool may_note(struct here *here)
{
#if DRY_RUN
	u32 zero = 0;

	here->trace = traces.lookup(&zero);
	return here->trace;
#else
	return true;
#endif
}

/* Named by ref, and still the same one and present; NULL otherwise. */
static __always_inline struct endpoint *lookup_present(u32 ref, u64 *state)
{
	u32 index = ref_index(ref);
	struct endpoint *endpoint;

	if (!index)
		return NULL;
	endpoint = endpoints.lookup(&index);
	if (!endpoint)
		return NULL;
	*state = *(volatile u64 *)&endpoint->state;
	if (!(*state & ENDPOINT_PRESENT) || !ref_current(ref, *state))
		return NULL;
	return endpoint;
}

/* In its home or its other bucket; only the row tells that it is really it. */
static __always_inline struct service *lookup_service(struct here *here,
						      const struct target *target,
						      u32 *index)
{
	u64 h = hash_target(here->settings->hash_key, target);
	u32 home = hash_bucket(h, SERVICE_BUCKETS - 1), tag = hash_tag(h);
	struct target_bucket *bucket;
	struct service *service;
	u64 entry;

#pragma unroll
	for (u32 try = 0; try < 2; try++) {
		if (try)
			home = hash_other_bucket(home, tag, SERVICE_BUCKETS - 1);
		bucket = service_targets.lookup(&home);
		entry = bucket ? entry_in(bucket, tag) : 0;
		if (!entry)
			continue;
		*index = entry;
		service = services.lookup(index);
		if (service && is_target(target, service->vip, service->port,
					 service->protocol))
			return service;
	}
	return NULL;
}

static __always_inline struct endpoint *lookup_sender(struct here *here,
						      const struct target *target,
						      u32 *index)
{
	u64 h = hash_target(here->settings->hash_key, target);
	u32 home = hash_bucket(h, ENDPOINT_BUCKETS - 1), tag = hash_tag(h);
	struct target_bucket *bucket;
	struct endpoint *endpoint;
	u64 entry;

#pragma unroll
	for (u32 try = 0; try < 2; try++) {
		if (try)
			home = hash_other_bucket(home, tag, ENDPOINT_BUCKETS - 1);
		bucket = endpoint_targets.lookup(&home);
		entry = bucket ? entry_in(bucket, tag) : 0;
		if (!entry)
			continue;
		*index = entry;
		endpoint = endpoints.lookup(index);
		if (endpoint &&
		    is_target(target, endpoint->address, endpoint->port,
			      endpoint->protocol))
			return endpoint;
	}
	return NULL;
}

static __always_inline struct endpoint_counters *lookup_counters(u32 cpu,
								 u32 endpoint)
{
	u32 index = cpu * MAX_ENDPOINTS + endpoint;

	return counters.lookup(&index);
}

static __always_inline struct request_counters *lookup_requests(u32 cpu,
								u32 endpoint)
{
	u32 index = cpu * MAX_ENDPOINTS + endpoint;

	return request_counters.lookup(&index);
}

static __always_inline struct traffic *lookup_forwarded(u32 cpu, u32 endpoint)
{
	u32 index = cpu * MAX_ENDPOINTS + endpoint;

	return forwarded.lookup(&index);
}

static __always_inline struct traffic *lookup_returned(u32 cpu, u32 endpoint)
{
	u32 index = cpu * MAX_ENDPOINTS + endpoint;

	return returned.lookup(&index);
}

static __always_inline void count_traffic(struct traffic *traffic, u32 bytes)
{
	COUNT(traffic->packets, 1);
	COUNT(traffic->bytes, bytes);
}

/*
 * The coarse clock costs 19 ns, jiffies nothing (the verifier inlines them),
 * and the clock moves only when they do.
 */
static __always_inline u32 now_tick(u32 cpu)
{
	struct cpu *own = cpus.lookup(&cpu);
	u64 jiffies = bpf_jiffies64(), now;

	if (!own || DRY_RUN)
		return bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
	if (own->jiffies != jiffies) {
		now = bpf_ktime_get_coarse_ns();
		own->tick = now >> TICK_SHIFT;
		own->window = now / WINDOW_NS;
		own->jiffies = jiffies;
	}
	return own->tick;
}

static __always_inline void say(struct here *here, u32 kind, u32 service,
				u32 endpoint, u32 chosen,
				const struct packet *packet)
{
	struct event_gate *gate = event_gates.lookup(&endpoint);
	struct event *event;
	u32 last;

	if (!gate || DRY_RUN)
		return;
	last = gate->tick[kind];
	if (last && here->tick - last < here->settings->event_ticks)
		return;
	gate->tick[kind] = here->tick; /* two CPUs at once: two events, no harm */
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event)
		return;
	event->time_ns = bpf_ktime_get_ns();
	event->kind = kind;
	event->service = service;
	event->endpoint = endpoint;
	event->chosen = chosen;
	__builtin_memcpy(event->client, packet->source, sizeof(event->client));
	event->client_port = packet->source_port;
	event->pad = 0;
	event->pad2 = 0;
	events.ringbuf_submit(event, 0);
}

/* Whether the packet's destination, or source, is one that endpoints answer. */
static __always_inline u32 direct_kind(const __be32 *address)
{
	struct prefix to = { .length = 8 * sizeof(to.address) };
	u32 *kind;

	__builtin_memcpy(to.address, address, sizeof(to.address));
	kind = direct.lookup(&to);
	return kind ? *kind : 0;
}

static __always_inline bool is_vip(const __be32 *address)
{
	struct target to = {};

	__builtin_memcpy(to.address, address, sizeof(to.address));
	return vips.lookup(&to) != NULL;
}

/*
 * No client is there: what the kernel calls martian, VIPs, and this host's own addresses, whose packets
 * don't come in from outside. Such a flow would claim the answers to our
 * health checks, or have two services talk to each other for ever.
 */
static __always_inline bool is_no_client(struct here *here, const __be32 *address)
{
	if (is_martian(address))
		return true;
	if (!(here->settings->own_sources >> hash_source(address[V4_WORD]) & 1))
		return false;
	return direct_kind(address) == DIRECT_OWN || is_vip(address);
}

#include "pick.c"
#include "cache.c"
#include "send.c"
#include "forward.c"
#include "giveback.c"
#include "follow.c"

/* ---- every packet -------------------------------------------------------- */

static __always_inline enum reason route(struct here *here,
					 struct packet *packet)
{
	struct endpoint *endpoint;
	struct service *service;
	struct target target;
	u32 index;

	target_of(&target, packet->destination, packet->destination_port,
		  packet->protocol);
	service = lookup_service(here, &target, &index);
	if (service && (service->flags & SERVICE_PRESENT)) {
		NOTE(service, index, 0);
		return forward(here, packet, index, service);
	}
	target_of(&target, packet->source, packet->source_port,
		  packet->protocol);
	endpoint = lookup_sender(here, &target, &index);
	if (endpoint) {
		NOTE(sender, index, 0);
		return giveback(here, packet, index, endpoint);
	}
	return would_loop(packet) ? REASON_drop_vip_port : REASON_pass_other;
}

/* Whether the frame is one of this host's: untagged, or of a VLAN that it has. */
static __always_inline bool arrive(struct here *here,
				   const struct packet *packet)
{
	struct port_key key = { .ifindex = here->ctx->ingress_ifindex };
	u32 *device;

	here->ifindex = key.ifindex;
	if (!packet->tags || !(packet->vlan[0] | packet->vlan[1]))
		return true;
	key.vlan[0] = packet->vlan[0];
	key.vlan[1] = packet->vlan[1];
	device = vlans.lookup(&key);
	NOTE(device, device ? *device : 0, 0);
	if (!device)
		return false;
	here->ifindex = *device;
	return true;
}

static __always_inline enum reason sort(struct here *here,
					struct packet *packet)
{
	enum parsed found;

	packet->zero = forget(here, 0);
	found = parse(packet, here->ctx);
	NOTE(parsed, found, packet->tags);
	if (found != PARSED_NOT_IP && !arrive(here, packet))
		return REASON_pass_vlan;
	switch (found) {
	case PARSED:
		return route(here, packet);
	case PARSED_NOT_IP:
		return REASON_pass_not_ip;
	case PARSED_OTHER:
		return REASON_pass_other;
	case PARSED_VLAN:
		return REASON_pass_vlan;
	case PARSED_FRAGMENT:
		return later_fragment(here, packet);
	case PARSED_ICMP:
		return icmp(here, packet);
	case PARSED_OTHER_PROTOCOL:
		return would_loop(packet) ? REASON_drop_vip_port :
					    REASON_pass_not_ip;
	case PARSED_BROKEN:
		return would_loop(packet) ? REASON_drop_broken :
					    REASON_pass_other;
	}
	return REASON_abort_impossible;
}

static __always_inline bool is_redirect(enum reason reason)
{
	return reason == REASON_forward_hop || reason == REASON_forward_fib ||
	       reason == REASON_return_hop || reason == REASON_return_fib;
}

/* Of the interface that the frame came in by, on this CPU. */
static __always_inline struct reasons *lookup_reasons(const struct here *here)
{
	u32 ifindex = here->ctx->ingress_ifindex;
	u32 row = interface_row(here->settings->interface_multiplier, ifindex);
	u32 index;
	struct interface *interface = interfaces.lookup(&row);

	if (!interface || interface->ifindex != ifindex)
		row = OTHER_INTERFACES;
	index = here->cpu * INTERFACE_ROWS + row;
	return reasons.lookup(&index);
}

/* The one way out: counts the reason and names the verdict. */
static __always_inline int leave(struct here *here, struct packet *packet,
				 enum reason reason)
{
	struct reasons *counted = lookup_reasons(here);

	if (!counted)
		return XDP_ABORTED;
	if (is_redirect(reason) && (packet->tags | packet->out.vlan[0]) &&
	    !retag(here->ctx, packet))
		reason = REASON_abort_impossible;
	NOTE(reason, reason, here->tick);
	COUNT(counted->count[reason % REASON_SLOTS], 1);
	switch (reason) {
	case REASON_forward_hop:
	case REASON_forward_fib:
	case REASON_return_hop:
	case REASON_return_fib:
		return bpf_redirect(packet->out.ifindex, 0);
	case REASON_reply_echo:
	case REASON_reply_ttl:
	case REASON_reply_mtu:
		/* XDP_TX would wait in a veth whose peer has GRO only. */
		return bpf_redirect(here->ctx->ingress_ifindex, 0);
	case REASON_drop_vip_port:
	case REASON_drop_no_endpoint:
	case REASON_drop_broken:
	case REASON_drop_fragment:
	case REASON_drop_source:
	case REASON_drop_ttl:
	case REASON_drop_mtu:
	case REASON_drop_icmp_limit:
		return XDP_DROP;
	case REASON_abort_impossible:
		return XDP_ABORTED;
	default:
		return XDP_PASS;
	}
}

/* Does not return, unless nobody is there: then the packet is the kernel's. */
static __always_inline void hand_to_refuse(struct here *here, enum reason reason)
{
	u32 *refused_mtu = lookup_refused_mtu(here);

	if (refused_mtu && reason == REASON_pass_ttl)
		*refused_mtu = 0;
	refusals.call(here->ctx, 0);
}

static __always_inline int long_way(struct here *here)
{
	struct packet packet = {};
	enum reason reason;

	NOTE(long_way, 0, 0);
	reason = sort(here, &packet);
	if (reason == REASON_pass_ttl || reason == REASON_pass_mtu)
		hand_to_refuse(here, reason);
	return leave(here, &packet, reason);
}

#include "hit.c"

/* False: the program is not set up. */
static __always_inline bool begin(struct here *here)
{
	u32 zero = 0;

	here->cpu = bpf_get_smp_processor_id();
	here->tick = now_tick(here->cpu);
	here->settings = settings.lookup(&zero);
	return here->settings && may_note(here);
}

int steer(struct xdp_md *ctx)
{
	struct here here = { .ctx = ctx };
	int verdict;

	if (!begin(&here))
		return XDP_ABORTED;
	capture_came(&here);
	verdict = hit(&here);
	verdict = verdict == LONG_WAY ? long_way(&here) : verdict;
	capture_leaves(&here, verdict);
	return verdict;
}

#include "refuse.c"
