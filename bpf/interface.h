/* SPDX-License-Identifier: GPL-2.0-only */
/* Which row of the counters an interface has. Knows no map. */
#ifndef PENUMBRA_INTERFACE_H
#define PENUMBRA_INTERFACE_H

#include "structs.h"

/*
 * A hash map would cost more than the counting. User space picks a multiplier
 * under which no two of the interfaces that it attaches to meet; the row says
 * whether it is really theirs.
 */
static __always_inline __u32 interface_row(__u32 multiplier, __u32 ifindex)
{
	return (ifindex * multiplier) >> INTERFACE_SHIFT;
}

#endif
