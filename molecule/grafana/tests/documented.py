"""Keys Grafana documents (its defaults.ini), as far as the role may set them; it ignores unknown ones in silence."""

KEYS = {
    "server": "protocol http_addr http_port domain root_url enforce_domain enable_gzip cert_file cert_key",
    "database": "type path wal",
    "log": "mode level filters",
    "log.console": "level format",
    "security": "admin_user admin_password admin_email secret_key cookie_secure cookie_samesite allow_embedding"
    " disable_gravatar strict_transport_security content_security_policy disable_initial_admin_creation",
    "users": "allow_sign_up allow_org_create viewers_can_edit default_theme auto_assign_org_role",
    "auth": "disable_login_form login_cookie_name",
    "auth.anonymous": "enabled org_name org_role hide_version",
    "analytics": "reporting_enabled check_for_updates check_for_plugin_updates feedback_links_enabled",
    "news": "news_feed_enabled",
    "snapshots": "enabled external_enabled",
    "public_dashboards": "enabled",
    "plugins": "preinstall_disabled preinstall_auto_update plugin_admin_enabled public_key_retrieval_disabled",
    "dashboards": "default_home_dashboard_path min_refresh_interval versions_to_keep",
    "unified_alerting": "enabled execute_alerts",
    "metrics": "enabled disable_total_stats basic_auth_username basic_auth_password",
    "smtp": "enabled host user password from_address from_name",
}
SOURCE_KEYS = {
    *("name", "type", "uid", "access", "url", "isDefault", "editable", "jsonData", "secureJsonData", "basicAuth"),
    *("basicAuthUser", "orgId", "version"),
}
JSON_KEYS = {
    "prometheus": {"httpMethod", "prometheusType", "timeInterval", "manageAlerts", "exemplarTraceIdDestinations"},
    "alertmanager": {"implementation", "handleGrafanaManagedAlerts"},
    "loki": {"maxLines", "derivedFields"},
    "jaeger": {"nodeGraph", "tracesToLogsV2", "tracesToMetrics"},
}
