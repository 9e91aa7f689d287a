/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the program tells of its decisions as it takes them, if it was built to:
 * the steps that `penumbra trace-packet` prints (DRY_RUN), and what `penumbra
 * capture` says of a frame (CAPTURE). The program that steers tells nothing, and
 * no NOTE() costs it an instruction. Knows no map.
 */
#ifndef PENUMBRA_NOTE_H
#define PENUMBRA_NOTE_H

#include "store.h"

#ifndef CAPTURE
#define CAPTURE 0
#endif

#define NOTES_MAX 128		/* of one packet; a power of two */

/* X(name): each has two numbers, a:32 and b:64. "ref" is a reference. */
#define NOTES(X) \
	X(long_way)	/* what was noted before is void: the short way knew no more */ \
	X(parsed)	/* a: enum parsed; b: VLAN tags */ \
	X(device)	/* a: ifindex of the VLAN device that it came in by; 0: none */ \
	X(service)	/* a: index of the service that it is for, or from */ \
	X(sender)	/* a: index of the endpoint that it is from */ \
	X(error_about)	/* an ICMP error; a: 1 about a client's packet, 0 about an answer */ \
	X(fragment)	/* a later one; a: whether it is known where its first one went */ \
	X(hash)		/* a: tag; b: home bucket */ \
	X(flow)		/* a: entry of the cache with this tag; b: its id */ \
	X(life)		/* b: of that entry */ \
	X(no_flow)	/* no entry has this tag */ \
	X(stale)	/* a: enum stale, why the entry is as good as none */ \
	X(other_tuple)	/* a SYN, and the entry is another flow's of the same tag */ \
	X(no_client)	/* its source can't be a client's */ \
	X(direct)	/* a: 0 it is for nobody that endpoints answer as themselves */ \
	X(affinity)	/* the client's address alone is hashed */ \
	X(ring)		/* a: cell, of all rings; b: {try:32 | ref:32} */ \
	X(live)		/* a: index that the ring chose, 0: none; b: its state */ \
	X(spill)	/* a: its share; b: the hash's, which spills when it is less */ \
	X(limit)	/* a: index; b: whether it is within its limit */ \
	X(slot)		/* a: slot; b: {usable:32 | ref:32} */ \
	X(other_live)	/* a: try; b: {usable:32 | ref:32} */ \
	X(choice)	/* a: ref; b: enum chose */ \
	X(flooded)	/* too many new flows in this tick: it goes by hash alone */ \
	X(moved)	/* to make room, to its other bucket; a: entry; b: its id */ \
	X(place)	/* a: entry that the flow gets; b: id that stands there */ \
	X(no_place)	/* both buckets are full of established flows, and none of the first can move */ \
	X(taken)	/* a: ref that another CPU has put there meanwhile */ \
	X(not_kept)	/* a: ref by hash alone, for it won't be remembered */ \
	X(counted)	/* a: index; b: enum counted_as */ \
	X(completed)	/* a: index of the live endpoint whose group is credited */ \
	X(gained)	/* a: FLOW_* that the packet adds */ \
	X(request)	/* a: enum asked; b: index of the endpoint that was asked */ \
	X(endpoint)	/* a: ref of who gets the packet */ \
	X(hop)		/* a: ifindex; b: ticks that the next hop is still good for */ \
	X(no_hop)	/* a: tick past which it was no longer good; 0: there is none */ \
	X(route)	/* a: ifindex; b: BPF_FIB_LKUP_RET_*, or a negative errno */ \
	X(route_mtu)	/* a: bytes that its route takes by an MTU of its own, too few */ \
	X(no_port)	/* a: ifindex that takes no redirected frames */ \
	X(too_big)	/* a: bytes that fit through the cached next hop; b: its ifindex */ \
	X(refused)	/* its sender is told by ICMP; a: bytes that fit, 0: its TTL; b: 1 by us, 0 by its VIP */ \
	X(reason)	/* a: enum reason; b: tick */

#define STALES(X) \
	X(gone)			/* it names an endpoint that is no more, or another's */ \
	X(down)			/* its endpoint is down */ \
	X(idle)			/* it was silent for longer than its limit */ \
	X(closed)		/* it ended, and this is a SYN */ \
	X(draining)		/* a SYN, and its endpoint takes no new flows */ \
	X(evicted)		/* its endpoint drains past the deadline: slice by slice */

#define CHOICES(X) \
	X(live)			/* the ring's */ \
	X(spilled)		/* one of its slots' */ \
	X(other)		/* another of the ring's, for it can't */ \
	X(last)			/* nobody can: the ring's all the same */ \
	X(nobody)

#define COUNTS(X) \
	X(new)			/* a new flow */ \
	X(midstream)		/* TCP, unknown and without its SYN */ \
	X(unremembered)		/* UDP that is not remembered */

#define ASKS(X) \
	X(started)		/* a request begins */ \
	X(answered) \
	X(aborted)		/* nobody will see its answer */ \
	X(sent_again)		/* bytes of one that was answered: no other one */

#define NOTE_ENUM(name) NOTE_##name,
#define STALE_ENUM(name) STALE_##name,
#define CHOSE_ENUM(name) CHOSE_##name,
#define COUNTED_ENUM(name) COUNTED_##name,
#define ASKED_ENUM(name) ASKED_##name,
enum note { NOTES(NOTE_ENUM) NOTE_COUNT };
enum stale { STALES(STALE_ENUM) STALE_COUNT };
enum chose { CHOICES(CHOSE_ENUM) CHOSE_COUNT };
enum counted_as { COUNTS(COUNTED_ENUM) COUNTED_COUNT };
enum asked { ASKS(ASKED_ENUM) ASKED_COUNT };
#undef NOTE_ENUM
#undef STALE_ENUM
#undef CHOSE_ENUM
#undef COUNTED_ENUM
#undef ASKED_ENUM

struct note_row {
	__u32 kind;		/* enum note */
	__u32 a;
	__u64 b;
};
_Static_assert(sizeof(struct note_row) == 16, "note_row");

struct trace {
	__u32 count;		/* of notes; those past NOTES_MAX are lost */
	__u32 refused_mtu;	/* as struct cpu's */
	struct note_row row[NOTES_MAX];
};
_Static_assert(sizeof(struct trace) == 8 + 16 * NOTES_MAX, "trace");

#define IS_CAPTURED(kind) \
	((kind) == NOTE_service || (kind) == NOTE_endpoint || \
	 (kind) == NOTE_sender || (kind) == NOTE_reason)

/* Of what goes on :here. What :a and :b ask for is looked up only where it is told. */
#define NOTE(kind, a, b)					\
	do {							\
		if (DRY_RUN || (CAPTURE && IS_CAPTURED(NOTE_##kind)))	\
			note(here, NOTE_##kind, (a), (b));	\
	} while (0)

#endif
