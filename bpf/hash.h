/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flow's hash and what is taken from it. tests/reference.py and the CLI
 * compute the same, so this is part of the contract. Knows no map.
 *
 * The service's index is not hashed: it is an access point's own affair, and
 * all access points that share a key must decide alike.
 */
#ifndef PENUMBRA_HASH_H
#define PENUMBRA_HASH_H

#include "structs.h"

/*
 * Raise it with every change that gives one flow another hash, bucket, tag,
 * slot or share: it is part of settings.layout, so that a cache or a ring made
 * under the old formulas is refused and not misread. Restated in layout.py.
 */
#define HASH_VERSION 4

#define HASH_FINAL 0x9e3779b97f4a7c15ULL
#define HASH_PICK 0xd6e8feb86659fd93ULL
#define HASH_AGAIN 0xa0761d6478bd642fULL
#define HASH_OTHER_BUCKET 0x9e3779b1U

/* MurmurHash3's finaliser (public domain): every bit moves every bit. */
static __always_inline u64 hash_mix(u64 h)
{
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	h ^= h >> 33;
	return h;
}

/*
 * Both multipliers are secret, so no difference between two tuples collides
 * more often than chance unless the key is known. Addresses and ports count
 * as numbers (host byte order).
 */
static __always_inline u64 hash_v4(const u64 *key, __be32 client, __be32 vip,
				   __be16 client_port, __be16 port, u8 protocol)
{
	u64 addresses = (u64)bpf_ntohl(client) << 32 | bpf_ntohl(vip);
	u64 ports = (u64)protocol << 32 | (u32)bpf_ntohs(port) << 16 |
		    bpf_ntohs(client_port);
	u64 h;

	h = (addresses ^ key[0]) * (key[1] | 1);
	h ^= h >> 32;
	h = (h ^ ports) * (key[0] | 1);
	h ^= h >> 29;
	h *= HASH_FINAL;
	h ^= h >> 32;
	return h;
}

static __always_inline u64 as_number(const __be32 *words)
{
	return (u64)bpf_ntohl(words[0]) << 32 | bpf_ntohl(words[1]);
}

/* As above; the VIP is ours to name, so it needs no secret of its own. */
static __always_inline u64 hash_v6(const u64 *key, const __be32 *client,
				   const __be32 *vip, __be16 client_port,
				   __be16 port, u8 protocol)
{
	u64 ports = (u64)protocol << 32 | (u32)bpf_ntohs(port) << 16 |
		    bpf_ntohs(client_port);
	u64 h;

	h = (as_number(client) ^ key[0]) * (key[1] | 1);
	h ^= h >> 32;
	h = (h ^ as_number(client + 2)) * (key[0] | 1);
	h ^= h >> 29;
	h = (h ^ (as_number(vip) * HASH_PICK + as_number(vip + 2))) * (key[1] | 1);
	h ^= h >> 32;
	h = (h ^ ports) * (key[0] | 1);
	h ^= h >> 29;
	h *= HASH_FINAL;
	h ^= h >> 32;
	return h;
}

/* Of a target, whose bytes count as two little-endian words and a half. */
static __always_inline u64 hash_target(const u64 *key,
				       const struct target *target)
{
	const __be32 *words = target->address;
	u64 h = (u64)words[1] << 32 | words[0];

	h = (h ^ key[0]) * HASH_PICK;
	h ^= ((u64)words[3] << 32 | words[2]) ^ h >> 32;
	h = (h + ((u64)target->protocol << 16 | target->port)) *
	    (key[1] | 1);
	h ^= h >> 32;
	h *= HASH_FINAL;
	h ^= h >> 32;
	return h;
}

/* Bit of settings.destinations; address is its last word. */
static __always_inline u32 hash_destination(__be32 address, __be16 port)
{
	return ((address ^ (u32)port << 16) * HASH_OTHER_BUCKET) >>
	       (32 - DESTINATION_BITS);
}

/* Bit of near, of an address's first word; for IPv4 its upper half. */
static __always_inline u32 hash_near(__be32 word, bool v6)
{
	u32 first = bpf_ntohl(word);

	return (v6 ? first * HASH_OTHER_BUCKET : first) >> 16;
}

static __always_inline u32 hash_tag(u64 h)
{
	u64 tag = h >> 32;

	return tag | (tag - 1) >> 63;	/* 1 for 0, without a branch */
}

static __always_inline u32 hash_bucket(u64 h, u32 mask)
{
	return (u32)h & mask;
}

/* Bit of settings.own_sources; address is its last word. */
static __always_inline u32 hash_source(__be32 address)
{
	return address * HASH_OTHER_BUCKET >> 26;
}

/* From bucket and tag alone, and never the same; its own inverse. */
static __always_inline u32 hash_other_bucket(u32 bucket, u32 tag, u32 mask)
{
	return (bucket ^ ((tag * HASH_OTHER_BUCKET >> 3) | 1)) & mask;
}

/* The second mix: high half for the ring, low half for spill. */
static __always_inline u64 hash_pick(u64 h)
{
	return hash_mix(h ^ HASH_PICK);
}

/* The ring's slot of the n-th try; 0 is the flow's own. */
static __always_inline u32 hash_ring_slot(u64 pick, u32 try, u32 ring_size)
{
	u64 h = try ? hash_mix(pick + try * HASH_AGAIN) : pick;

	return (h >> 32) * ring_size >> 32;
}

static __always_inline u32 hash_spill_bits(u64 pick)
{
	return (u32)pick;
}

static __always_inline u32 hash_shadow_slot(u64 pick)
{
	return hash_mix(pick ^ HASH_AGAIN) % SHADOW_SLOTS;
}

#endif
