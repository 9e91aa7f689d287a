/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What became of redirected frames: steer() only asks for a redirect, and the
 * kernel may lose the frame after that. Two raw tracepoints tell of it. What is
 * attached to them never changes; it calls what counts by way of an array, where
 * an upgrade puts another in one step, so that no frame counts twice or never.
 *
 * Offsets of kernel structures come as -D: there are no kernel headers, and BCC
 * knows no relocations. Arguments are those of include/trace/events/xdp.h.
 */
#include <linux/types.h>

#include "maps.h"
#include "interface.h"

/* What names a device beyond its network namespace. */
struct device {
	u32 ifindex;
	u32 netns;		/* inode of the namespace */
};

static __always_inline struct device device_of(const void *dev)
{
	struct device found = {};
	const void *net = NULL;

	bpf_probe_read_kernel(&found.ifindex, sizeof(found.ifindex),
			      dev + NET_DEVICE_IFINDEX);
	bpf_probe_read_kernel(&net, sizeof(net), dev + NET_DEVICE_NET);
	bpf_probe_read_kernel(&found.netns, sizeof(found.netns),
			      net + NET_INUM);
	return found;
}

/* OTHER_INTERFACES: none of those that we are attached to. */
static __always_inline u32 lookup_row(const struct device *device)
{
	struct interface *interface;
	struct settings *own;
	u32 zero = 0, row;

	own = settings.lookup(&zero);
	if (!own)
		return OTHER_INTERFACES;
	row = interface_row(own->interface_multiplier, device->ifindex);
	interface = interfaces.lookup(&row);
	return interface && interface->ifindex == device->ifindex &&
			       interface->netns == device->netns ?
		       row :
		       OTHER_INTERFACES;
}

/*
 * Of frames from :from to :to; NULL: they were not ours. Every interface that we
 * redirect to is one of those that we are attached to, unless it has just been
 * taken off them.
 */
static __always_inline struct redirects *lookup_redirects(const struct device *from,
							  const struct device *to)
{
	u32 index;

	if (lookup_row(from) == OTHER_INTERFACES)
		return NULL;
	index = bpf_get_smp_processor_id() * INTERFACE_ROWS + lookup_row(to);
	return redirects.lookup(&index);
}

static __always_inline void note_error(struct redirects *counted, int error)
{
	counted->error = -error;
	counted->error_tick = bpf_ktime_get_ns() >> TICK_SHIFT;
}

/* xdp_devmap_xmit(from_dev, to_dev, sent, drops, err): a bulk went to the driver. */
int count_sent(struct bpf_raw_tracepoint_args *ctx)
{
	struct device from = device_of((void *)ctx->args[0]);
	struct device to = device_of((void *)ctx->args[1]);
	struct redirects *counted = lookup_redirects(&from, &to);
	int drops = ctx->args[3];

	if (!counted)
		return 0;
	counted->sent += (int)ctx->args[2];
	counted->lost += drops;
	if (drops)
		note_error(counted, ctx->args[4]);
	return 0;
}

/*
 * xdp_redirect_err(dev, xdp, tgt, err, map_type, map_id, index): a frame did not
 * come so far. Without a map :index is the interface's.
 */
int count_refused(struct bpf_raw_tracepoint_args *ctx)
{
	struct device from = device_of((void *)ctx->args[0]);
	struct device to = { .ifindex = ctx->args[6], .netns = from.netns };
	struct redirects *counted = lookup_redirects(&from, &to);

	if (!counted)
		return 0;
	counted->refused++;
	note_error(counted, ctx->args[3]);
	return 0;
}

int at_sent(struct bpf_raw_tracepoint_args *ctx)
{
	redirect_programs.call(ctx, REDIRECT_SENT);
	return 0;
}

int at_refused(struct bpf_raw_tracepoint_args *ctx)
{
	redirect_programs.call(ctx, REDIRECT_REFUSED);
	return 0;
}
