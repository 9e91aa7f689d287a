/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fragments: the first names the ports, and where it went the later ones follow.
 * Knows no map.
 */
#ifndef PENUMBRA_FRAGMENT_H
#define PENUMBRA_FRAGMENT_H

#include "parse.h"

/* Reassembly gives up after 30 s on Linux; later ones come within a moment. */
#define FRAGMENT_TICKS 38	/* 10 s */

static __always_inline void fragment_of(struct fragment_key *key,
					const struct packet *packet)
{
	__builtin_memcpy(key->source, packet->source, sizeof(key->source));
	__builtin_memcpy(key->destination, packet->destination,
			 sizeof(key->destination));
	key->id = packet->fragment_id;
	/* RFC 8200 section 4.5: IPv6 tells packets apart without it. */
	key->protocol = packet->v6 ? 0 : packet->protocol;
}

static __always_inline bool fragment_old(const struct fragment *fragment,
					 u32 tick)
{
	return tick - fragment->tick > FRAGMENT_TICKS;
}

#endif
