/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Incremental Internet checksums. RFC 1624, section 3, equation 3:
 *
 *	HC' = ~(~HC + ~m + m')
 *
 * HC is the old checksum, m the old 16-bit word of the header, m' the new one;
 * additions are in one's complement. Words are taken as they lie in memory:
 * the sum does not depend on byte order (RFC 1071, section 2).
 */
#ifndef PENUMBRA_CSUM_H
#define PENUMBRA_CSUM_H

/* The ~m + m' of one change; changes add up, of 16-bit words too. */
static __always_inline u64 csum_change(u32 from, u32 to)
{
	return (u64)(u32)~from + to;
}

static __always_inline u16 csum_apply(u16 check, u64 change)
{
	u64 sum = (u16)~check + change;

	sum = (u32)sum + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

#endif
