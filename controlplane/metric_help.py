# SPDX-License-Identifier: Apache-2.0
"""What each metric says: what it counts, in which unit, of what. ``METRICS.md`` is this as a page.

Rates are of completed new flows, measured before spill, unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

HELP: Mapping[str, str] = {
    # of the controller
    "up": "1 while a controller runs and answers.",
    "frozen": "1 while automatic action is frozen by command (penumbra freeze), else 0.",
    "readings_fresh": "1 while counters are being read; at 0 weights stay and nothing is removed.",
    "tick_seconds": "How long the last tick took, from readings to what was applied, in seconds.",
    "tick_overruns_total": "Ticks that took longer than the configured tick, since the controller's start.",
    "steps_total": (
        "Changes made to the data plane (rings, weights, members, health), since the controller's start."
    ),
    "troubles": "Parts that do not work now; penumbra status names them and why.",
    "shadows_cost_per_hour": "What all shadows together cost per hour, by price_per_hour of their hosts.",
    "shadows_budget_per_hour": "What they may cost per hour (budget_per_hour); absent: whatever they do.",
    # by interface
    "interface_steered": (
        "1 while the program is attached to this interface and steers what comes in by it, else 0."
    ),
    "xdp_native": "1: attached in the driver (native XDP); 0: generic XDP, which is slower.",
    "packets_total": (
        "Packets that came in by this interface, by reason: why they left as they did (forward_, return_, "
        "reply_, pass_, drop_, abort_), since the maps were made."
    ),
    "redirected_frames_total": (
        "Frames that were redirected to this interface, by result: sent, lost (not taken by it) or refused "
        "(it is down, or they exceed its MTU), since the maps were made."
    ),
    # by service
    "lead_time_seconds": (
        "Lead time that is reckoned with: from the decision until a shadow may take its full share, p95, in "
        "seconds."
    ),
    "ordered_earlier_seconds": (
        "By so much more than the lead time shadows are ordered ahead, as only new flows can be moved, in "
        "seconds."
    ),
    "flow_life_seconds": "Mean life of the service's flows, in seconds; absent: not known.",
    "fail_open": (
        "1 while no member of the service may serve, and packets go to all its live endpoints; else 0."
    ),
    "service_rate_deviation": "How unusual the service's request rate is, 0 to 1; 0.5 and more is no chance.",
    "service_latency_deviation": (
        "How unusually slow the service's answers are, 0 to 1; 0.5 and more is no chance."
    ),
    "service_error_deviation": (
        "How unusually many errors the service has (resets, SYNs without SYN-ACK, aborted requests), 0 to "
        "1; 0.5 and more is no chance."
    ),
    "service_rate_novelty": (
        "How new the service's request rate is to it in the last step, as penumbra detect scores "
        "series, 0 to 1; absent: not judged."
    ),
    "service_novel_steps_total": (
        "Steps of the service whose novelty was remarkable (0.5 or more), since the controller's start."
    ),
    "service_failing": (
        "1 in a time with failures, or in which many connect anew, of which nothing is learned; else 0."
    ),
    "common_cause": (
        "1 while several endpoints, or shadows too, are slow or failing at once, for which no shadows are "
        "made; else 0."
    ),
    "service_shadows_cost_per_hour": (
        "What the service's shadows cost per hour, by price_per_hour of their hosts."
    ),
    # by host
    "host_slots": "Shadows that the host may carry at once.",
    "host_shadows": "Shadows on the host, whatever their state.",
    "host_price_per_hour": "What a shadow on the host costs per hour, as configured.",
    "host_cpu_utilization_ratio": (
        "Share of the host's CPU time that is used: 0 to 1; absent: not read, or too long ago to act on."
    ),
    "host_memory_utilization_ratio": "Share of the host's memory that is used: 0 to 1; absent as before.",
    "host_network_utilization_ratio": (
        "Share of the speed of the host's busiest device that is used: 0 to 1; absent as before."
    ),
    "host_usage_age_seconds": "How long ago it was read what of the host is used, in seconds; absent: never.",
    "host_failed_runs": "Playbook runs that failed on the host since the last that made a shadow there.",
    "host_avoided_seconds": "So long the host gets no new shadows, for runs that failed there, in seconds.",
    # by service, where its endpoints are sized together
    "pool_demand_flows_per_second": (
        "Demand of all of a pool in the last tick, in completed new flows per second."
    ),
    "pool_forecast_high_flows_per_second": (
        "Demand that the pool is made ready for: at most exceeded as rarely as shadows.over_cost says, a "
        "lead time from now by the last readings, in flows per second."
    ),
    "pool_capacity_flows_per_second": (
        "What the pool's members that serve now can serve, in new flows per second."
    ),
    "pool_forecast_p50_flows_per_second": (
        "Median of the pool's demand a lead time from now by all of the past, in flows per second."
    ),
    "pool_forecast_p90_flows_per_second": (
        "Ninth decile of the pool's demand a lead time from now by all of the past, in flows per second."
    ),
    "pool_members_sized": "Members of the pool that pay in the long run, live endpoints included.",
    "pool_members_standing": "Of pool_members_sized, those that stand by for more than the ninth decile.",
    "pool_members_wanted": "Members of the pool that are wanted now, live endpoints and shadows.",
    # by live endpoint, of its group: itself with its shadows
    "demand_flows_per_second": (
        "Demand of the endpoint's group in the last tick, in completed new flows per second."
    ),
    "demand_level_flows_per_second": "The same demand, smoothed, in flows per second.",
    "forecast_flows_per_second": (
        "Demand that is seen coming a lead time from now by the last readings, in flows per second."
    ),
    "forecast_high_flows_per_second": (
        "The high quantile of that demand, exceeded as rarely as shadows.over_cost says, in flows per second."
    ),
    "forecast_p50_flows_per_second": (
        "Median of demand a lead time from now by all of the past, in flows per second."
    ),
    "forecast_p90_flows_per_second": (
        "Ninth decile of demand a lead time from now by all of the past, in flows per second."
    ),
    "capacity_flows_per_second": (
        "What one member of the group is taken to serve, given or learned, in new flows per second; absent: "
        "not known."
    ),
    "capacity_low_flows_per_second": (
        "Lower end of what was measured of the endpoint's capacity, in new flows per second."
    ),
    "capacity_high_flows_per_second": (
        "Upper end of what was measured of the endpoint's capacity, in new flows per second."
    ),
    "capacity_contradicted": "1: the capacity that is given is not what was measured; else 0.",
    "saturated": "1 while the endpoint can serve no more, by its answers or its use; else 0.",
    "members_sized": "Members of the group that pay in the long run, the live endpoint included.",
    "members_standing": "Of members_sized, those that stand by for more than the ninth decile.",
    "members_wanted": "Members of the group that are wanted now, the live endpoint included.",
    "spill_ratio": (
        "Share of the live endpoint's new flows that go to its shadows, or neighbours, instead: 0 to 1."
    ),
    "ring_weight": (
        "The endpoint's weight in its service's ring; its share of new flows is that of all weights."
    ),
    "penalty_ratio": (
        "Share of its usual new flows that the live endpoint loses while it is slow or failing and "
        "others of its service are not: 0 to 1."
    ),
    "rate_deviation": "How unusual the group's request rate is, 0 to 1; 0.5 and more is no chance.",
    "latency_deviation": (
        "How unusually slow the live endpoint's answers are, 0 to 1; 0.5 and more is no chance."
    ),
    "error_deviation": (
        "How unusually many errors the live endpoint has (resets, SYNs without SYN-ACK, aborted requests), "
        "0 to 1; 0.5 and more is no chance."
    ),
    "shadows": (
        "Shadows of the endpoint, by state (requested, provisioning, warming, ready, standby, draining, "
        "removing, failed); absent: none is in it."
    ),
    "shadow_failed_attempts": (
        "Failed tries to make this shadow, by the reason of the last one; absent: it has not failed."
    ),
    "shadow_lag_seconds": (
        "So old may the data be that this shadow's clients see now, in seconds; absent: it is not known."
    ),
    "shadow_lag_bytes": (
        "What was written and this shadow lacked when it was last read, in bytes; absent: it is not told."
    ),
    "shadow_max_lag_seconds": (
        "How old this shadow's data may be seen (sync.max_lag), in seconds; absent: it is agreed in bytes."
    ),
    "shadow_max_lag_bytes": (
        "How much this shadow's data may lack (sync.max_lag), in bytes; absent: it is agreed in seconds."
    ),
    "shadow_lag_ok": (
        "1 while this shadow's data is new enough for new flows, else 0; absent: it serves no copy."
    ),
    # by endpoint: live ones alone, then shadows too
    "rtt_seconds": (
        "Mean handshake time of the live endpoint's new flows, seen at the access point, in seconds; TCP "
        "only."
    ),
    "endpoint_healthy": (
        "1 while the live endpoint is healthy by its probes and its agent, else 0; absent: not known yet."
    ),
    "endpoint_ejected": (
        "1 while the member gets no packets for its health (it fails its probes, or is held down); absent: "
        "it has not failed lately, as the next three."
    ),
    "endpoint_not_ejected": (
        "1 while the member fails its probes and gets packets all the same, as max_ejected allows no more."
    ),
    "endpoint_held_seconds": "How long the member is still held down though it is well, in seconds.",
    "endpoint_flaps": "How often the member went down lately, until it has been well for ten minutes.",
    "endpoint_serves_on": (
        "1 while the live endpoint is drained (by command or by its agent) and serves on, as nobody else "
        "could take its new flows; 0 while it is drained and gets none; absent: it is not drained."
    ),
    "endpoint_bypassed": "1: the endpoint's replies do not come back through the access point; else 0.",
    "endpoint_packets_total": "Packets from clients steered to this endpoint, since it was installed.",
    "endpoint_bytes_total": (
        "Bytes of the packets from clients steered to this endpoint, since it was installed."
    ),
    "endpoint_return_packets_total": "Packets of this endpoint's replies to clients, since it was installed.",
    "endpoint_return_bytes_total": "Bytes of this endpoint's replies to clients, since it was installed.",
    "endpoint_flows_total": "New flows that this endpoint was given, since it was installed.",
    "endpoint_requests_total": (
        "Requests started at this endpoint, of services with requests told, since it was installed."
    ),
    "endpoint_answered_total": (
        "Requests that this endpoint answered, of services with requests told, since it was installed."
    ),
    "endpoint_aborted_total": (
        "Requests that ended without an answer (RST, the endpoint's FIN, a forgotten flow), since the "
        "endpoint was installed."
    ),
    "endpoint_requests_in_flight": "Requests at this endpoint that have no answer yet.",
    "endpoint_requests_per_second": "Requests started at this endpoint per second, in the last tick.",
    "endpoint_response_seconds": (
        "Quantiles of the time from a request to the first byte of its answer, of the last half to whole "
        "minute, seen at the access point, in seconds."
    ),
    "endpoint_cpu_utilization_ratio": "Share of the CPU time that the member may use that it uses: 0 to 1.",
    "endpoint_memory_utilization_ratio": "Share of the memory that the member may use that it uses: 0 to 1.",
    "endpoint_network_utilization_ratio": (
        "Share of its busiest device's speed that the member's host uses: 0 to 1."
    ),
    "endpoint_agent_weight_ratio": "Share of its usual weight that the member's agent asks for: 0 to 1.",
    "endpoint_strength_flows_per_second": (
        "What the member can serve, as what it uses tells, in new flows per second."
    ),
    "dataplane_events_total": (
        "Events that the program reported, by kind (redirected, no_shadow, limited, endpoint_down), since "
        "the controller's start; reports are limited in rate, so these are no counts of packets."
    ),
}
"""Name without its prefix -> what it counts."""
