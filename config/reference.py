"""Options of Centrifugo v6 that Wardgate does not have, so that a configuration brought along is refused by name.

A name that is neither here nor in `config.settings` is a mistake of typing. Only names live here.
"""

from collections.abc import Mapping

# Whole sections: whatever stands below them.
SECTIONS = frozenset(
    {
        *("engine", "broker", "presence_manager", "map_broker", "controller", "shared_poll", "rpc", "proxies"),
        *("grpc_api", "consumers", "sse", "http_stream", "webtransport", "uni_sse", "uni_http_stream"),
        *("uni_websocket", "uni_grpc", "emulation", "admin", "prometheus", "health", "swagger", "debug", "init"),
        *("opentelemetry", "graphite", "usage_stats", "node", "shutdown", "pid_file", "enable_unreleased_features"),
    }
)

_TOKEN = frozenset(
    {
        *("hmac_previous_secret_key", "hmac_previous_secret_key_valid_until", "audience_regex", "issuer_regex"),
        "insecure_skip_jwks_endpoint_safety_check",
    }
)
_CHANNEL_OPTIONS = frozenset(
    {
        *("allow_tags_filter", "allowed_delta_types", "auto_cache_recover", "delta_publish", "force_recovery_mode"),
        *("map", "map_clients_presence_channel_prefix", "map_users_presence_channel_prefix", "shared_poll"),
        *("publication_data_format", "publish_proxy_enabled", "publish_proxy_name", "sub_refresh_proxy_enabled"),
        *("sub_refresh_proxy_name", "subscribe_proxy_enabled", "subscribe_proxy_name", "subscription_type"),
        *("subscribe_stream_proxy_bidirectional", "subscribe_stream_proxy_enabled", "subscribe_stream_proxy_name"),
    }
)

# Single options, by the section that we do have.
OPTIONS: Mapping[str, frozenset[str]] = {
    "http_server": frozenset({"h2c_external", "http3", "internal_tls", "tls", "tls_autocert", "tls_external"}),
    "log": frozenset({"file"}),
    "http_api": frozenset({"disabled", "external", "handler_prefix"}),
    "websocket": frozenset(
        {
            *("compression", "compression_level", "compression_min_size", "decompressed_message_size_limit"),
            *("disabled", "handler_prefix", "read_buffer_size", "use_write_buffer_pool", "write_buffer_size"),
            "write_timeout",
        }
    ),
    "client": frozenset(
        {
            *("channel_position_max_time_lag", "concurrency", "connect_code_to_unidirectional_disconnect"),
            *("connect_include_server_time", "insecure_skip_token_signature_verify", "proxy", "user_id_http_header"),
        }
    ),
    "client.token": _TOKEN,
    "client.subscription_token": _TOKEN,
    "channel": frozenset({"proxy", "publication_data_format"}),
    "channel.without_namespace": _CHANNEL_OPTIONS,
    "channel.namespaces": _CHANNEL_OPTIONS,
}


def known(section: str, name: str) -> bool:
    """Whether Centrifugo has `name` in `section` (a dotted path; "" is the top) and we do not."""
    return name in (OPTIONS.get(section, frozenset()) if section else SECTIONS)


def known_path(path: str) -> bool:
    """The same for a whole dotted path, or one that goes on below such an option."""
    parts = path.split(".")
    return any(known(".".join(parts[:i]), part) for i, part in enumerate(parts))


def variables() -> frozenset[str]:
    """The options' paths as variables would name them, without prefix; what stands below begins with one of them."""
    paths = {*SECTIONS, *(f"{section}.{name}" for section, names in OPTIONS.items() for name in names)}
    return frozenset(path.replace(".", "_").upper() for path in paths)
