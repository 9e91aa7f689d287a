/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The short way: known flows in plain frames (no tags, options, fragments or
 * extension headers) that tell nothing new, and a flood's SYNs, by a next hop
 * that is trusted.
 * Nearly every packet is such a one, so its way is written by itself and stays
 * in registers. It decides nothing: what it can't be sure of goes the long way,
 * with nothing changed yet, and there the same would have been done with these
 * too, which tests/packet/test_short_way.py holds.
 *
 * A part of steer.c, for it looks things up in maps.
 */

#define LONG_WAY (-1)
#define NEWS (TCP_FIN | TCP_SYN | TCP_RST)	/* what tells something */
#define IP_PLAIN 0x45			/* version 4, no options */
#define IP6_VERSION 6
#define TTL_LESS_ONE 0xfffffffeU	/* csum_change(ttl, ttl - 1) of any */

/* A plain frame: its headers lie where they always do. */
struct glance {
	void *data;
	void *l3;
	struct ports *ports;
	__be32 *source;		/* one word, or four */
	__be32 *destination;
	u32 bytes;		/* of the IP packet */
	u32 payload;		/* of TCP */
	u8 protocol;
	u8 flags;		/* TCP's */
};

struct known {
	struct flow *flow;
	u64 id;
	u64 life;
};

static __always_inline bool glance_v4(struct glance *seen)
{
	struct iphdr *ip = seen->l3;

	seen->source = &ip->saddr;
	seen->destination = &ip->daddr;
	seen->bytes = bpf_ntohs(ip->tot_len);
	seen->protocol = ip->protocol;
	return *(u8 *)ip == IP_PLAIN && ip->ttl > 1 &&
	       !(ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_OFFSET));
}

static __always_inline bool glance_v6(struct glance *seen)
{
	struct ipv6hdr *ip = seen->l3;

	seen->source = ip->saddr.in6_u.u6_addr32;
	seen->destination = ip->daddr.in6_u.u6_addr32;
	seen->bytes = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	seen->protocol = ip->nexthdr;
	return *(u8 *)ip >> 4 == IP6_VERSION && ip->hop_limit > 1;
}

static __always_inline bool glance_tcp(struct glance *seen, u32 l3_bytes)
{
	u8 *tcp = (u8 *)seen->ports;
	u32 header = (tcp[TCP_OFFSET_BYTE] >> 4) * 4;

	seen->payload = seen->bytes - l3_bytes - header;
	seen->flags = tcp[TCP_FLAGS_BYTE];
	return header >= sizeof(struct tcphdr) &&
	       l3_bytes + header <= seen->bytes;
}

static __always_inline bool glance_udp(struct glance *seen, u32 l3_bytes,
				       bool v6)
{
	struct udphdr *udp = (void *)seen->ports;
	u32 length = bpf_ntohs(udp->len);

	seen->payload = 0;
	seen->flags = 0;
	return length >= sizeof(*udp) && l3_bytes + length <= seen->bytes &&
	       (!v6 || udp->check);
}

/* Whether the frame is as long as its IP packet says. */
static __always_inline bool is_whole(struct xdp_md *ctx, const struct glance *seen,
				     const void *end)
{
	u32 length = seen->bytes + ETH_HLEN, first = end - seen->data;

	return length <= first || (FRAGS && first >= FIRST_BUFFER_MIN &&
				   length <= bpf_xdp_get_buff_len(ctx));
}

/* False: no plain frame. */
static __always_inline bool glance(struct xdp_md *ctx, struct glance *seen,
				   void *data, void *end, bool v6)
{
	u32 l3_bytes = v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);

	seen->data = data;
	seen->l3 = data + ETH_HLEN;
	seen->ports = seen->l3 + l3_bytes;
	if ((void *)seen->ports + sizeof(struct tcphdr) > end ||
	    !(v6 ? glance_v6(seen) : glance_v4(seen)) ||
	    !is_whole(ctx, seen, end))
		return false;
	if (seen->protocol == IPPROTO_TCP)
		return glance_tcp(seen, l3_bytes);
	return seen->protocol == IPPROTO_UDP && glance_udp(seen, l3_bytes, v6);
}

static __always_inline u64 hash_seen(struct here *here, const struct glance *seen,
				     const __be32 *client, const __be32 *vip,
				     __be16 client_port, __be16 port, bool v6)
{
	const u64 *key = here->settings->hash_key;

	return v6 ? hash_v6(key, client, vip, client_port, port, seen->protocol) :
		    hash_v4(key, client[0], vip[0], client_port, port,
			    seen->protocol);
}

static __always_inline bool find_known(struct here *here, u64 hash,
				       struct known *known)
{
	u32 tag = hash_tag(hash), mask = here->settings->bucket_mask;
	u32 index = hash_bucket(hash, mask);
	struct bucket *bucket;

#pragma unroll
	for (u32 try = 0; try < 2; try++) {
		bucket = flows.lookup(&index);
		if (!bucket)
			return false;
#pragma unroll
		for (u32 way = 0; way < BUCKET_FLOWS; way++) {
			known->flow = &bucket->flow[way];
			known->id = *(volatile u64 *)&known->flow->id;
			if (known->id >> ID_TAG != tag)
				continue;
			NOTE(flow, index * BUCKET_FLOWS + way, known->id);
			return true;
		}
		index = hash_other_bucket(index, tag, mask);
	}
	return false;
}

/* Nothing ends or begins by it, and nobody wants to know the time. */
static __always_inline bool goes_without_saying(struct here *here,
						struct known *known,
						const struct glance *seen,
						u8 flags, bool back)
{
	u64 life = *(volatile u64 *)&known->flow->life;
	bool asked = life & LIFE(FLOW_REQUEST);

	known->life = life;
	if (life & LIFE(CLOSING))
		return false;
	if (back ? !(life & LIFE(FLOW_ESTABLISHED)) :
		   (life & LIFE(FLOW_SYNACK | FLOW_ESTABLISHED)) ==
			   LIFE(FLOW_SYNACK))
		return false;
	if ((flags & SERVICE_REQUESTS) && seen->payload && asked == back)
		return false;
	/* Before last seen moves a request's time is looked at: keep_late(). */
	return !unseen(here->settings, life, here->tick) ||
	       !(asked ||
		 idle(here->settings, here->tick, life, seen->protocol));
}

static __always_inline void see_known(struct here *here,
				      const struct known *known)
{
	if (unseen(here->settings, known->life, here->tick))
		see(known->flow, here->tick);
}

/* Whether a mapped address is this one of one word, or four. */
static __always_inline bool is_seen(const __be32 *mapped, const __be32 *address,
				    bool v6)
{
	const u64_alias *halves = (const u64_alias *)mapped;

	if (v6)
		return halves[0] == ((u64)address[1] << 32 | address[0]) &&
		       halves[1] == ((u64)address[3] << 32 | address[2]);
	return !halves[0] &&
	       halves[1] == ((u64)address[0] << 32 | V4_MAPPED_PREFIX);
}

/* ---- sure by now: it leaves ----------------------------------------------- */

static __always_inline u64 rewrite_seen(__be32 *at, const __be32 *mapped, bool v6)
{
	u64 change;

	if (v6)
		return rewrite_words(at, mapped);
	change = csum_change(*at, mapped[V4_WORD]);
	*at = mapped[V4_WORD];
	return change;
}

static __always_inline void rewrite_check_seen(const struct glance *seen,
					       u64 change)
{
	__sum16 *check = (void *)seen->ports +
			 __builtin_offsetof(struct tcphdr, check);

	if (seen->protocol == IPPROTO_TCP) {
		*check = csum_apply(*check, change);
		return;
	}
	check = (void *)seen->ports + __builtin_offsetof(struct udphdr, check);
	if (!*check)
		return;
	*check = csum_apply(*check, change);
	if (!*check)
		*check = 0xffff;
}

/* :at and :port_at are destination or source; :macs where it goes, from where. */
static __always_inline void rewrite_hit(const struct glance *seen, __be32 *at,
					const __be32 *mapped, __be16 *port_at,
					__be16 port, const void *macs, bool v6)
{
	u64 change = rewrite_seen(at, mapped, v6);
	struct ipv6hdr *ip6 = seen->l3;
	struct iphdr *ip = seen->l3;

	if (v6) {
		ip6->hop_limit--;
	} else {
		ip->check = csum_apply(ip->check, change + TTL_LESS_ONE);
		ip->ttl--;
	}
	rewrite_check_seen(seen, change + csum_change(*port_at, port));
	*port_at = port;
	copy_macs(seen->data, macs);
}

static __always_inline int leave_hit(struct here *here, struct reasons *counted,
				     enum reason reason, u32 ifindex)
{
	NOTE(reason, reason, here->tick);
	COUNT(counted->count[reason], 1);
	return bpf_redirect(ifindex, 0);
}

/* By its next hop, untagged. */
static __always_inline bool leads_on(struct here *here,
				     const struct endpoint *to,
				     const struct glance *seen)
{
	return here->tick < to->hop_expires && !to->hop_vlan &&
	       !(to->hop_mtu && seen->bytes > to->hop_mtu);
}

static __always_inline int hit_forward(struct here *here,
				       const struct glance *seen, bool v6)
{
	struct known known;
	struct traffic *traffic;
	struct reasons *reason;
	struct endpoint *to;
	struct service *service;
	u32 index, at;

	if (!find_known(here,
			hash_seen(here, seen, seen->source, seen->destination,
				  seen->ports->source, seen->ports->destination,
				  v6),
			&known))
		return LONG_WAY;
	index = ref_index(known.id);
	to = endpoints.lookup(&index);
	if (!to || ref_unusable(known.id, *(volatile u64 *)&to->state &
						  ~(u64)ENDPOINT_DRAINING))
		return LONG_WAY;
	at = to->service;
	service = services.lookup(&at);
	if (!service || !is_seen(service->vip, seen->destination, v6) ||
	    service->port != seen->ports->destination ||
	    service->protocol != seen->protocol ||
	    !(service->flags & SERVICE_PRESENT) ||
	    !goes_without_saying(here, &known, seen, service->flags, false))
		return LONG_WAY;
	if (!leads_on(here, to, seen))
		return LONG_WAY;
	traffic = lookup_forwarded(here->cpu, index);
	reason = lookup_reasons(here);
	if (!traffic || !reason)
		return LONG_WAY;
	NOTE(service, at, 0);
	NOTE(life, 0, known.life);
	NOTE(endpoint, known.id, 0);
	NOTE(hop, to->hop_ifindex, to->hop_expires - here->tick);
	count_traffic(traffic, seen->bytes);
	rewrite_hit(seen, seen->destination, to->address,
		    &seen->ports->destination, to->port, to->hop_dst, v6);
	see_known(here, &known);
	return leave_hit(here, reason, REASON_forward_hop, to->hop_ifindex);
}

/*
 * By the gateway: so the client is no direct destination and no VIP (see near),
 * and the answer leaves with the VIP's address whether its flow is known or not.
 */
static __always_inline int hit_return(struct here *here,
				      const struct glance *seen, bool v6)
{
	struct traffic *traffic;
	struct gateway *gateway;
	struct endpoint *from;
	struct reasons *reason;
	struct service *service;
	struct target target;
	struct known known;
	u32 index, at;
	bool found;

	target_seen(&target, seen->source, seen->ports->source, seen->protocol,
		    v6);
	from = lookup_sender(here, &target, &index);
	if (!from)
		return LONG_WAY;
	at = from->service;
	service = services.lookup(&at);
	if (!service)
		return LONG_WAY;
	gateway = lookup_gateway(here, v6, seen->destination[0]);
	if (!gateway || gateway->hop_vlan ||
	    (gateway->hop_mtu && seen->bytes > gateway->hop_mtu))
		return LONG_WAY;
	found = find_known(here,
			   hash_seen(here, seen, seen->destination,
				     v6 ? service->vip : service->vip + V4_WORD,
				     seen->ports->destination, service->port,
				     v6),
			   &known) &&
		(u32)known.id == ref_of(index, from->state);
	if (found &&
	    !goes_without_saying(here, &known, seen, service->flags, true))
		return LONG_WAY;
	traffic = lookup_returned(here->cpu, index);
	reason = lookup_reasons(here);
	if (!traffic || !reason)
		return LONG_WAY;
	NOTE(sender, index, 0);
	NOTE(service, at, 0);
	if (found)
		NOTE(life, 0, known.life);
	else
		NOTE(stale, STALE_gone, 0);
	NOTE(hop, gateway->hop_ifindex, gateway->hop_expires - here->tick);
	count_traffic(traffic, seen->bytes);
	rewrite_hit(seen, seen->source, service->vip, &seen->ports->source,
		    service->port, gateway->hop_dst, v6);
	if (found)
		see_known(here, &known);
	return leave_hit(here, reason, REASON_return_hop, gateway->hop_ifindex);
}

/* ---- a flood's SYNs: neither looked for nor remembered ------------------- */

/* The live endpoint that the ring gives it; NULL: pick() has to be asked. */
static __always_inline struct endpoint *flood_choice(struct here *here,
						     const struct service *service,
						     u64 pick, u32 *index)
{
	u32 ref = lookup_ring(here, service, pick, 0), spill;
	struct endpoint *live;
	u64 state;

	live = lookup_present(ref, &state);
	if (!live || !takes_new(state))
		return NULL;
	spill = *(volatile u32 *)&live->spill;
	if (spill == SPILL_ALL || hash_spill_bits(pick) < spill)
		return NULL;
	*index = ref_index(ref);
	NOTE(endpoint, ref, 0);
	return live;
}

/* True: nothing is remembered now, and it has been told once in this tick. */
static __always_inline bool still_flooded(struct here *here,
					  const struct cpu *own)
{
	return own && own->flood_tick == here->tick &&
	       own->insert_tick == here->tick &&
	       own->inserted >= here->settings->insert_limit;
}

static __always_inline int hit_flood(struct here *here,
				     const struct glance *seen, bool v6)
{
	struct cpu *own = cpus.lookup(&here->cpu);
	struct endpoint_counters *counted;
	struct traffic *traffic;
	struct reasons *reason;
	struct service *service;
	struct endpoint *to;
	struct target target;
	u32 index = 0, at;
	u64 hash;

	if ((seen->flags & (NEWS | TCP_ACK)) != TCP_SYN ||
	    !still_flooded(here, own))
		return LONG_WAY;
	target_seen(&target, seen->source, 0, 0, v6);
	if (is_martian(target.address) ||
	    (here->settings->own_sources >>
	     hash_source(target.address[V4_WORD]) & 1))
		return LONG_WAY;
	target_seen(&target, seen->destination, seen->ports->destination,
		    seen->protocol, v6);
	service = lookup_service(here, &target, &at);
	if (!service ||
	    (service->flags & (SERVICE_PRESENT | SERVICE_AFFINITY)) !=
		    SERVICE_PRESENT)
		return LONG_WAY;
	NOTE(service, at, 0);
	hash = hash_seen(here, seen, seen->source, seen->destination,
			 seen->ports->source, seen->ports->destination, v6);
	to = flood_choice(here, service, hash_pick(hash), &index);
	if (!to || !leads_on(here, to, seen))
		return LONG_WAY;
	traffic = lookup_forwarded(here->cpu, index);
	counted = lookup_counters(here->cpu, index);
	reason = lookup_reasons(here);
	if (!traffic || !counted || !reason)
		return LONG_WAY;
	COUNT(own->flooded, 1);
	COUNT(counted->offered, 1);
	COUNT(counted->flows, 1);
	COUNT(counted->unremembered, 1);
	count_traffic(traffic, seen->bytes);
	rewrite_hit(seen, seen->destination, to->address,
		    &seen->ports->destination, to->port, to->hop_dst, v6);
	return leave_hit(here, reason, REASON_forward_hop, to->hop_ifindex);
}

static __always_inline int hit_ip(struct here *here, void *data, void *end,
				  bool v6)
{
	struct glance seen;

	if (!glance(here->ctx, &seen, data, end, v6))
		return LONG_WAY;
	/* A dry run shall tell all of the decision's steps. */
	if (seen.flags & NEWS)
		return DRY_RUN ? LONG_WAY : hit_flood(here, &seen, v6);
	return may_be_service(here->settings,
			      seen.destination[v6 ? ADDRESS_WORDS - 1 : 0],
			      seen.ports->destination) ?
		       hit_forward(here, &seen, v6) :
		       hit_return(here, &seen, v6);
}

/* The verdict, or LONG_WAY. */
static __always_inline int hit(struct here *here)
{
	void *data = (void *)(long)here->ctx->data;
	void *end = (void *)(long)here->ctx->data_end;
	__be16 protocol;

	if (data + ETH_HLEN > end || (*(u8 *)data & 1))
		return LONG_WAY;
	protocol = *(__be16 *)(data + 2 * ETH_ALEN);
	if (protocol == bpf_htons(ETH_P_IP))
		return hit_ip(here, data, end, false);
	if (protocol == bpf_htons(ETH_P_IPV6))
		return hit_ip(here, data, end, true);
	return LONG_WAY;
}
