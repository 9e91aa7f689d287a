/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A flow's life: what packets tell of it, how long it may be silent, who gives
 * way when the cache is full. Works on entries that it is handed, and on each
 * by compare and exchange, for several CPUs may hold one. Knows no map.
 *
 * struct flow.life: {last seen tick:32 | FLOW_*:8 | stamp:24}
 *
 * The stamp is the SYN's time in us; from the SYN-ACK on the number that the
 * client has to acknowledge, which who forged its source can't know; and once
 * that is done what request.h says.
 */
#ifndef PENUMBRA_FLOW_H
#define PENUMBRA_FLOW_H

#include "endpoint.h"
#include "hash.h"
#include "parse.h"
#include "store.h"

#define LIFE_TICK 32
#define LIFE_FLAGS 24
#define LIFE_STAMP 0xffffffU
#define LIFE(flags) ((u64)(flags) << LIFE_FLAGS)
#define LIFE_TRIES 4			/* against other CPUs, for one entry */
#define ACK_WINDOW 65536U		/* what an endpoint may have sent unasked */
#define CLOSING (FLOW_FIN_CLIENT | FLOW_FIN_ENDPOINT | FLOW_RST)
#define STAMP_TICKS ((LIFE_STAMP * 1000ULL) >> TICK_SHIFT) /* until it wraps */
#define NS_PER_US 1000

#define ID_TAG 32			/* struct flow.id: {tag:32 | reference:32} */

/* ---- time ---------------------------------------------------------------- */

static __always_inline u32 idle_limit(const struct settings *settings,
				      u64 life, u8 protocol)
{
	if (life & LIFE(CLOSING))
		return settings->idle_closing_ticks;
	if (protocol == IPPROTO_UDP)
		return settings->idle_udp_ticks;
	if (life & LIFE(FLOW_ESTABLISHED))
		return settings->idle_established_ticks;
	return settings->idle_opening_ticks;
}

static __always_inline bool idle(const struct settings *settings, u32 tick,
				 u64 life, u8 protocol)
{
	return (s32)(tick - (u32)(life >> LIFE_TICK)) >
	       (s32)idle_limit(settings, life, protocol);
}

/* The SYN's stamp is there and can't have wrapped. */
static __always_inline bool stamped(u64 life, u32 tick)
{
	return (life & LIFE_STAMP) &&
	       tick - (u32)(life >> LIFE_TICK) < STAMP_TICKS;
}

static __always_inline u32 us_since_stamp(u64 life)
{
	return (u32)(bpf_ktime_get_ns() / NS_PER_US - (life & LIFE_STAMP)) &
	       LIFE_STAMP;
}

/* ---- what packets tell --------------------------------------------------- */

/* :timed: a SYN is stamped. */
static __always_inline u64 first_life(u32 tick, const struct packet *packet,
				      bool timed)
{
	u64 life = (u64)tick << LIFE_TICK;
	u32 stamp;

	if (packet->protocol == IPPROTO_UDP)
		return life;
	if (opens(packet) && !timed)
		return life | LIFE(FLOW_SYN);
	if (opens(packet)) {
		stamp = bpf_ktime_get_ns() / NS_PER_US & LIFE_STAMP;
		return life | LIFE(FLOW_SYN) | (stamp ? stamp : 1);
	}
	life |= LIFE(FLOW_MIDSTREAM) |
		((packet->sequence + packet->payload) & LIFE_STAMP);
	if (packet->tcp_flags & TCP_FIN)
		life |= LIFE(FLOW_FIN_CLIENT);
	return life;
}

/* Not before it does is the handshake done. */
static __always_inline bool acknowledges(const struct packet *packet, u64 life)
{
	return (packet->tcp_flags & TCP_ACK) &&
	       ((packet->acknowledged - (u32)life) & LIFE_STAMP) < ACK_WINDOW;
}

/* Flags that a client's packet adds. */
static __always_inline u64 client_tells(const struct packet *packet, u64 life)
{
	u64 set = 0;

	if (packet->tcp_flags & TCP_RST)
		return LIFE(FLOW_RST);
	if (packet->protocol != IPPROTO_TCP)
		return 0;
	if (packet->tcp_flags & TCP_FIN)
		set = LIFE(FLOW_FIN_CLIENT);
	if ((life & LIFE(FLOW_SYNACK)) && !(life & LIFE(FLOW_ESTABLISHED)) &&
	    acknowledges(packet, life))
		set |= LIFE(FLOW_ESTABLISHED);
	return set;
}

/* Flags that the endpoint's answer adds. */
static __always_inline u64 endpoint_tells(const struct packet *packet, u64 life)
{
	u64 set = 0;

	if (packet->protocol == IPPROTO_UDP)
		return LIFE(FLOW_ESTABLISHED);
	if (packet->tcp_flags & TCP_RST)
		return LIFE(FLOW_RST);
	if (packet->tcp_flags & TCP_SYN)
		return life & LIFE(FLOW_SYN) ? LIFE(FLOW_SYNACK) : 0;
	if (packet->tcp_flags & TCP_FIN)
		set = LIFE(FLOW_FIN_ENDPOINT);
	if (life & LIFE(FLOW_MIDSTREAM))
		set |= LIFE(FLOW_ESTABLISHED);
	return set;
}

static __always_inline bool both_fins(u64 gained, u64 life)
{
	return (gained & LIFE(FLOW_FIN_CLIENT | FLOW_FIN_ENDPOINT)) &&
	       (life & LIFE(FLOW_FIN_CLIENT)) &&
	       (life & LIFE(FLOW_FIN_ENDPOINT));
}

/* For so long that it has to be noted that it was seen. */
static __always_inline bool unseen(const struct settings *settings, u64 life,
				   u32 tick)
{
	return (s32)(tick - (u32)(life >> LIFE_TICK)) >
	       (s32)settings->seen_ticks;
}

/* By itself, so that flags which another CPU adds meanwhile stay. */
static __always_inline void see(struct flow *flow, u32 tick)
{
	STORE(((volatile u32 *)&flow->life)[LIFE_TICK / 32], tick);
}

/* Whether update_life() writes the time last seen. */
static __always_inline bool moves_seen(const struct settings *settings,
				       u64 life, u64 set, u32 tick)
{
	return (set & ~life) || (life & LIFE(CLOSING)) ||
	       unseen(settings, life, tick);
}

/*
 * Adds flags and the time last seen; without news nothing is written. *life
 * becomes what stands there now; returns the flags that this call has added.
 *
 * The time alone is stored late, for that makes a line dirty which was only
 * read: idle limits are longer by settings->seen_ticks.
 */
static __always_inline u64 update_life(const struct settings *settings,
				       struct flow *flow, u64 *life, u64 set,
				       u32 tick)
{
	u64 next, seen;

	if (!(set & ~*life) && !(*life & LIFE(CLOSING))) {
		if (unseen(settings, *life, tick))
			see(flow, tick);
		return 0;
	}
	for (u32 i = 0; i < LIFE_TRIES; i++) {
		next = (u32)*life | set | (u64)tick << LIFE_TICK;
		if (next == *life)
			return 0;
		seen = swap(&flow->life, *life, next);
		if (seen == *life) {
			*life = next;
			return next & ~seen & LIFE(0xff);
		}
		*life = seen;
	}
	return 0;
}

/* What acknowledges() compares with; before the answer leaves. */
static __always_inline void expect_ack(struct flow *flow, u64 life,
				       const struct packet *packet)
{
	u32 next = packet->sequence + 1;
	u64 seen;

	for (u32 i = 0; i < LIFE_TRIES; i++) {
		if (life & LIFE(FLOW_ESTABLISHED))
			return;
		seen = swap(&flow->life, life,
			    (life & ~(u64)LIFE_STAMP) | (next & LIFE_STAMP));
		if (seen == life)
			return;
		life = seen;
	}
}

/* ---- who gives way ------------------------------------------------------- */

#define RANK_EMPTY 0ULL
#define RANK_INVALID 1ULL
#define RANK_IDLE 2ULL
#define RANK_UNANSWERED (1ULL << 32)	/* + last seen: the oldest goes first */
#define RANK_NEVER (~0ULL)

/*
 * How gladly an entry is given up: less is sooner. endpoint is whom the entry
 * names, NULL when there is none such any more.
 */
static __always_inline u64 victim_rank(const struct settings *settings,
				       u32 tick, u64 id, u64 life,
				       const struct endpoint *endpoint)
{
	if (!id)
		return RANK_EMPTY;
	if (!endpoint)
		return RANK_INVALID;
	if (idle(settings, tick, life, endpoint->protocol))
		return RANK_IDLE;
	if (life & LIFE(FLOW_ESTABLISHED))
		return RANK_NEVER;
	return RANK_UNANSWERED + (life >> LIFE_TICK);
}

/* ---- who it is ----------------------------------------------------------- */

/* From the client's side, whichever way the packet goes. */
static __always_inline u64 hash_flow(const u64 *key, bool v6, u8 protocol,
				     const __be32 *client, const __be32 *vip,
				     __be16 client_port, __be16 port)
{
	if (v6)
		return hash_v6(key, client, vip, client_port, port, protocol);
	return hash_v4(key, client[V4_WORD], vip[V4_WORD], client_port, port,
		       protocol);
}

/* ---- the cold 5-tuple ---------------------------------------------------- */

static __always_inline void write_key(struct flow_key *key, u32 service,
				      const struct packet *packet)
{
	if (DRY_RUN)
		return;
	__builtin_memcpy(key->client, packet->source, sizeof(key->client));
	key->client_port = packet->source_port;
	key->service = service;
}

static __always_inline bool same_key(const struct flow_key *key, u32 service,
				     const struct packet *packet)
{
	return key->service == service &&
	       key->client_port == packet->source_port &&
	       key->client[0] == packet->source[0] &&
	       key->client[1] == packet->source[1] &&
	       key->client[2] == packet->source[2] &&
	       key->client[3] == packet->source[3];
}

#endif
