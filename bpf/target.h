/* SPDX-License-Identifier: GPL-2.0-only */
/* Targets: services and endpoints as packets name them. Knows no map. */
#ifndef PENUMBRA_TARGET_H
#define PENUMBRA_TARGET_H

#include "hash.h"
#include "parse.h"

static __always_inline void target_of(struct target *target,
				      const __be32 *address, __be16 port,
				      u8 protocol)
{
	__builtin_memcpy(target->address, address, sizeof(target->address));
	target->port = port;
	target->protocol = protocol;
	target->pad = 0;
}

/* The same of an address of one word, or four. */
static __always_inline void target_seen(struct target *target,
					const __be32 *address, __be16 port,
					u8 protocol, bool v6)
{
	u64_alias *halves = (u64_alias *)target->address;

	halves[0] = v6 ? (u64)address[1] << 32 | address[0] : 0;
	halves[1] = v6 ? (u64)address[3] << 32 | address[2] :
			 (u64)address[0] << 32 | V4_MAPPED_PREFIX;
	target->port = port;
	target->protocol = protocol;
	target->pad = 0;
}

/* The bucket's entry of this fingerprint, its index in the low half; 0: none. */
static __always_inline u64 entry_in(const struct target_bucket *bucket,
				    u32 fingerprint)
{
	u64 entry;

#pragma unroll
	for (u32 way = 0; way < TARGET_WAYS; way++) {
		entry = *(volatile u64 *)&bucket->entry[way];
		if (entry >> 32 == fingerprint)
			return entry;
	}
	return 0;
}

/* False: no service is there. */
static __always_inline bool may_be_service(const struct settings *settings,
					   __be32 address, __be16 port)
{
	u32 bit = hash_destination(address, port);

	return settings->destinations[bit / 64 % DESTINATION_WORDS] >>
		       bit % 64 & 1;
}

static __always_inline bool is_target(const struct target *target,
				      const __be32 *address, __be16 port,
				      u8 protocol)
{
	return target->address[3] == address[3] && target->port == port &&
	       target->protocol == protocol &&
	       target->address[2] == address[2] &&
	       target->address[1] == address[1] &&
	       target->address[0] == address[0];
}

#endif
