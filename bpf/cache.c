/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flow cache: where a flow is found, who gives way to a new one, and how
 * two CPUs that put or move one at once end up with one entry. What is in an
 * entry is flow.h's affair.
 *
 * A part of steer.c, for it looks things up in maps.
 */

/* From bucket and way. */
static __always_inline struct flow *lookup_flow(const struct place *place)
{
	u32 index = place->bucket;
	struct bucket *bucket = flows.lookup(&index);

	if (!bucket)
		return NULL;
	asm volatile("" : "+r"(bucket));	/* no arithmetic before the check */
	return &bucket->flow[place->way % BUCKET_FLOWS];
}

static __always_inline void find_in_bucket(struct here *here,
					   struct place *place, u32 index,
					   u32 tag)
{
	struct bucket *bucket = flows.lookup(&index);
	u32 way = NOWHERE;

	place->bucket = index;
	if (bucket) {
#pragma unroll
		for (u32 i = 0; i < BUCKET_FLOWS; i++) {
			u64 id = *(volatile u64 *)&bucket->flow[i].id;

			if (id >> ID_TAG == tag) {
				place->id = id;
				way = i;
				break;
			}
		}
	}
	place->way = forget(here, way);
}

static __always_inline struct place find_flow(struct here *here, u64 hash)
{
	u32 mask = here->settings->bucket_mask, tag = hash_tag(hash);
	u32 bucket = hash_bucket(hash, mask);
	struct place place = {};

	find_in_bucket(here, &place, bucket, tag);
	if (place.way == NOWHERE)
		find_in_bucket(here, &place,
			       hash_other_bucket(bucket, tag, mask), tag);
	if (place.way != NOWHERE)
		place.flow = lookup_flow(&place);
	NOTE(hash, tag, bucket);
	if (place.flow)
		NOTE(flow, place.bucket * BUCKET_FLOWS + place.way, place.id);
	else
		NOTE(no_flow, 0, 0);
	return place;
}

/* The first way of a bucket that holds nothing; NOWHERE: all are taken. */
static __always_inline u32 find_empty(struct here *here, u32 index)
{
	struct bucket *bucket = flows.lookup(&index);
	u32 way = NOWHERE;

	if (bucket) {
#pragma unroll
		for (u32 i = BUCKET_FLOWS; i-- > 0;)
			if (!*(volatile u64 *)&bucket->flow[i].id)
				way = i;
	}
	return forget(here, way);
}

/* What the entry's hash was made of. */
static __always_inline struct flow_key *lookup_key(const struct place *place)
{
	u32 index = place->bucket;
	struct bucket_keys *keys = flow_keys.lookup(&index);

	return keys ? &keys->key[place->way % BUCKET_FLOWS] : NULL;
}

/* What a flow that is moved was told meanwhile goes with it. */
static __always_inline void bring_life(const struct place *place)
{
	u64 copied = *(volatile u64 *)&place->moved->life;
	u64 life = *(volatile u64 *)&place->flow->life;

	if (life != copied)
		swap(&place->moved->life, copied, life);
}

/*
 * Moves one flow of a full bucket to its other one, which follows from bucket
 * and tag alone. It stands in both until its old place is taken, so that it is
 * found all the while. Without this 34 of 10 000 flows find no place when half
 * of the cache is in use, with it 0.1; at three quarters 320, with it 19.
 * False: each one's other bucket is full too.
 */
static __always_inline bool displace(struct here *here, u32 bucket, u32 start,
				     struct place *place)
{
	struct place to = { .way = NOWHERE };
	struct bucket *full = flows.lookup(&bucket);
	struct flow_key *key, *copy;

	if (!full)
		return false;
#pragma unroll
	for (u32 i = 0; i < BUCKET_FLOWS; i++) {
		u32 way = (start + i) % BUCKET_FLOWS;
		u64 id = *(volatile u64 *)&full->flow[way].id;

		if (!id || to.way != NOWHERE)
			continue;
		to.bucket = hash_other_bucket(bucket, id >> ID_TAG,
					      here->settings->bucket_mask);
		to.way = find_empty(here, to.bucket);
		place->id = forget(here, id);
		place->way = forget(here, way);
	}
	if (to.way == NOWHERE)
		return false;
	place->bucket = bucket;
	place->flow = lookup_flow(place);
	place->moved = lookup_flow(&to);
	if (!place->flow || !place->moved ||
	    swap(&place->moved->id, 0, place->id))
		return false;
	NOTE(moved, to.bucket * BUCKET_FLOWS + to.way, place->id);
	STORE(*(volatile u64 *)&place->moved->life, place->flow->life);
	key = lookup_key(place);
	copy = lookup_key(&to);
	if (key && copy && !DRY_RUN)
		*copy = *key;
	return true;
}

static __always_inline struct place find_victim(struct here *here, u64 hash)
{
	u32 mask = here->settings->bucket_mask;
	u32 first = hash_bucket(hash, mask);
	u32 second = hash_other_bucket(first, hash_tag(hash), mask);
	u32 start = hash >> (64 - 2), way;
	u64 best = forget(here, RANK_NEVER), id, rank, state;
	struct place place = { .bucket = first }, other = {};
	struct bucket *bucket;
	struct flow *flow;

	/* Mostly there is room, and nobody's rank need be asked for. */
	place.way = find_empty(here, first);
	if (place.way == NOWHERE) {
		place.bucket = second;
		place.way = find_empty(here, second);
	}
	if (place.way != NOWHERE) {
		place.flow = lookup_flow(&place);
		return place;
	}
	/*
	 * From a way that the hash names: to the verifier all ways are then
	 * alike, and it looks at one instead of eight stories.
	 */
#pragma unroll
	for (u32 i = 0; i < CANDIDATES; i++) {
		u32 index = i < BUCKET_FLOWS ? first : second;

		bucket = flows.lookup(&index);
		if (!bucket)
			continue;
		way = (start + i) % BUCKET_FLOWS;
		flow = &bucket->flow[way];
		id = *(volatile u64 *)&flow->id;
		rank = victim_rank(here->settings, here->tick, id,
				   *(volatile u64 *)&flow->life,
				   lookup_present((u32)id, &state));
		rank = forget(here, rank);
		if (rank >= best)
			continue;
		best = rank;
		place.id = id;
		place.bucket = index;
		place.way = way;
	}
	if (best >= RANK_UNANSWERED && displace(here, first, start, &other)) {
		place = other;
		best = RANK_EMPTY;
	}
	/* Whoever gives way, the verifier goes on once. */
	best = forget(here, best);
	place.bucket = forget(here, place.bucket);
	place.way = forget(here, place.way);
	place.id = forget(here, place.id);
	if (best != RANK_NEVER)
		place.flow = lookup_flow(&place);
	return place;
}

/*
 * Two CPUs may put one flow in two places at once. Both look at all its places
 * in the same order: the first entry stands, whoever is later takes its own
 * back, and who is first the other's, for that one may have looked too soon.
 * Returns the reference that stands.
 */
static __always_inline u32 settle(struct here *here, u64 hash,
				  const struct place *own, u64 own_id)
{
	u32 mask = here->settings->bucket_mask, tag = hash_tag(hash);
	u32 first = hash_bucket(hash, mask);
	u32 second = hash_other_bucket(first, tag, mask);
	u32 start = hash >> (64 - 2), way;
	bool passed = false;
	struct bucket *bucket;
	struct flow *flow;
	u64 id;

	if (DRY_RUN)		/* nothing was put */
		return own_id;
#pragma unroll
	for (u32 i = 0; i < CANDIDATES; i++) {
		u32 index = i < BUCKET_FLOWS ? first : second;

		bucket = flows.lookup(&index);
		if (!bucket)
			continue;
		way = (start + i) % BUCKET_FLOWS;
		flow = &bucket->flow[way];
		id = *(volatile u64 *)&flow->id;
		if (id >> ID_TAG != tag)
			continue;
		if (index == own->bucket && way == own->way) {
			passed = true;
			continue;
		}
		if (passed) {
			swap(&flow->id, id, 0);
			continue;
		}
		swap(&own->flow->id, own_id, 0);
		return id;
	}
	return own_id;
}

static __always_inline void count_aborted(struct here *here, u32 endpoint)
{
	struct request_counters *counted = lookup_requests(here->cpu, endpoint);

	NOTE(request, ASKED_aborted, endpoint);
	if (counted)
		COUNT(counted->aborted, 1);
}

/* The flow at a place that another gets: nobody will see its answer. */
static __always_inline void abandon(struct here *here, const struct place *place)
{
	u64 life = *(volatile u64 *)&place->flow->life, state;
	u64 id = forget(here, place->id);

	if (id && (life & LIFE(FLOW_REQUEST)) &&
	    end_request(place->flow, life, 0) && lookup_present(id, &state))
		count_aborted(here, ref_index(id));
}

/*
 * Whether one more flow may be remembered: past so many in a tick this CPU is
 * flooded, and nothing is until the next one.
 */
static __always_inline bool may_remember(struct here *here)
{
	struct cpu *own = cpus.lookup(&here->cpu);

	if (!own)
		return false;
	if (DRY_RUN) {
		if ((own->insert_tick == here->tick ? own->inserted : 0) <
		    here->settings->insert_limit)
			return true;
		NOTE(flooded, 0, 0);
		return false;
	}
	if (own->insert_tick != here->tick) {
		own->insert_tick = here->tick;
		own->inserted = 0;
	}
	if (own->inserted < here->settings->insert_limit) {
		own->inserted++;
		return true;
	}
	own->floods += own->flood_tick != here->tick;
	own->flood_tick = here->tick;
	own->flooded++;
	return false;
}

/* The clock costs 40 ns, and of many at once a part tells as much. */
static __always_inline bool times_handshake(struct here *here, u64 hash)
{
	struct cpu *own = cpus.lookup(&here->cpu);

	return own && (own->inserted <= HANDSHAKES_TIMED ||
		       !(hash % HANDSHAKE_SHARE));
}

static __always_inline bool flooded(struct here *here)
{
	struct cpu *own = cpus.lookup(&here->cpu);

	return own && own->flood_tick == here->tick;
}

/*
 * Puts the flow at its old place, or at a victim's. Returns the reference that
 * is remembered now, 0 for none.
 */
static __always_inline u32 remember(struct here *here, u64 hash, u32 ref,
				    u64 life, u32 service,
				    const struct packet *packet,
				    const struct place *old)
{
	struct place place = *old;
	u64 id = (u64)hash_tag(hash) << ID_TAG | ref;
	struct flow_key *key;
	struct place found;

	if (place.way == NOWHERE)
		place = find_victim(here, hash);
	else
		place.flow = lookup_flow(&place);
	if (!place.flow) {
		NOTE(no_place, 0, 0);
		return 0;
	}
	NOTE(place, place.bucket * BUCKET_FLOWS + place.way,
	     place.moved ? 0 : place.id);
	if (swap(&place.flow->id, place.id, id) != place.id) {
		if (place.moved)
			swap(&place.moved->id, place.id, 0);
		found = find_flow(here, hash);
		return found.flow ? (u32)found.id : 0;
	}
	if (place.moved)
		bring_life(&place);
	else
		abandon(here, &place);
	STORE(*(volatile u64 *)&place.flow->life, life);
	key = lookup_key(&place);
	if (key)
		write_key(key, service, packet);
	return settle(here, hash, &place, id);
}

/* The handshake is done, or the endpoint answered: credit the group. */
static __always_inline void count_completed(struct here *here,
					    const struct service *service,
					    bool v6, const __be32 *client,
					    u64 hash)
{
	u64 pick = pick_bits(here, service, v6, client, hash);
	u32 ref = lookup_ring(here, service, pick, 0);
	struct endpoint_counters *counted;
	u64 state;

	if (!lookup_present(ref, &state))
		return;
	NOTE(completed, ref_index(ref), 0);
	counted = lookup_counters(here->cpu, ref_index(ref));
	if (counted)
		COUNT(counted->completed, 1);
}
