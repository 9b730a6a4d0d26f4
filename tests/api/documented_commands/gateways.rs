//! Forward-auth configurations, with real gateways in front of a real upstream.

use super::{
    demo_service::DemoService,
    gateway_checks::{check_http2, check_limits, check_outage, check_requests, start_upstream},
    gateway_tunnels::{check_http2_tunnels, check_tunnels, check_web_socket},
    page::Page,
    shell::Shell,
};
use crate::fixture::{Gateway, TestApp, free_port};

/// The addresses of the service and of the API behind a gateway, in place of those in the document.
struct Addresses {
    auth: String,
    api: String,
}

impl Addresses {
    fn localize(&self, configuration: &str) -> String {
        configuration.replace("auth:8080", &self.auth).replace("api:8080", &self.api)
    }

    /// Replaces the addresses in a configuration of Envoy, which has hosts and ports apart.
    fn localize_envoy(&self, configuration: &str) -> String {
        [("auth", &self.auth), ("api", &self.api)].iter().fold(
            configuration.to_owned(),
            |text, (name, address)| {
                let port = address.rsplit(':').next().unwrap();
                text.replace(
                    &format!("address: {name}, port_value: 8080"),
                    &format!("address: 127.0.0.1, port_value: {port}"),
                )
            },
        )
    }
}

/// A running gateway, with its URL and, if it is another one, its URL for HTTP/2.
struct RunningGateway {
    _process: Gateway,
    url: String,
    http2_url: Option<String>,
    has_web_sockets: bool,
    has_http2_web_sockets: bool,
}

impl RunningGateway {
    fn new(process: Gateway, port: u16) -> Self {
        let url = format!("http://127.0.0.1:{port}");
        Self {
            _process: process,
            url,
            http2_url: None,
            has_web_sockets: false,
            has_http2_web_sockets: false,
        }
    }

    async fn nginx(configuration: &str, addresses: &Addresses) -> Self {
        let (port, http2_port) = (free_port(), free_port());
        // Without TLS, a port of nginx has one version of HTTP.
        let listen = format!("listen 127.0.0.1:{port}; listen 127.0.0.1:{http2_port} http2;");
        let http = addresses.localize(configuration).replace("listen 80;", &listen);
        let http2_url = Some(format!("http://127.0.0.1:{http2_port}"));
        let process = Gateway::nginx(port, &http).await;
        Self { http2_url, has_web_sockets: true, ..Self::new(process, port) }
    }

    async fn caddy(configuration: &str, addresses: &Addresses) -> Self {
        let (port, http2_port) = (free_port(), free_port());
        let urls = [port, http2_port].map(|port| format!("http://127.0.0.1:{port}"));
        let caddyfile =
            addresses.localize(configuration).replace("api.example.com", &urls.join(", "));
        let process = Gateway::caddy(port, http2_port, &caddyfile).await;
        let [_, http2_url] = urls;
        let http2_url = Some(http2_url);
        Self { http2_url, has_web_sockets: true, ..Self::new(process, port) }
    }

    async fn envoy(configuration: &str, addresses: &Addresses) -> Self {
        let port = free_port();
        let configuration = addresses
            .localize_envoy(configuration)
            .replace("0.0.0.0, port_value: 80 ", &format!("127.0.0.1, port_value: {port} "));
        let gateway = Self::new(Gateway::envoy(port, &configuration).await, port);
        Self { http2_url: Some(gateway.url.clone()), has_web_sockets: true, ..gateway }
    }

    async fn haproxy(configuration: &str, script: &str, addresses: &Addresses) -> Self {
        let port = free_port();
        let configuration = addresses
            .localize(configuration)
            .replace("bind :80", &format!("bind 127.0.0.1:{port}"))
            .replace("/etc/haproxy/", "{folder}/");
        let process = Gateway::haproxy(port, &configuration, &addresses.localize(script)).await;
        let gateway = Self::new(process, port);
        let http2_url = Some(gateway.url.clone());
        Self { http2_url, has_web_sockets: true, has_http2_web_sockets: true, ..gateway }
    }

    async fn apache(configuration: &str, script: &str, addresses: &Addresses) -> Self {
        let port = free_port();
        let configuration = addresses.localize(configuration).replace("/etc/apache2/", "{folder}/");
        let process = Gateway::apache(port, &configuration, &addresses.localize(script)).await;
        Self::new(process, port)
    }

    async fn check(&self, app: &TestApp) {
        let tenant = check_requests(app, &self.url).await;
        check_tunnels(&self.url, &tenant).await;
        if self.has_web_sockets {
            check_web_socket(&self.url, &tenant).await;
        }
        if let Some(url) = &self.http2_url {
            check_http2(url, &tenant).await;
            check_http2_tunnels(url, &tenant, self.has_http2_web_sockets).await;
        }
        check_limits(app, &self.url, &tenant).await;
    }
}

/// Debian has no package of Traefik. So the configuration is parsed, and the service is asked as
/// Traefik asks it: Traefik replaces each header of the response and its spellings with
/// underscores, and each one is removed from preflight requests.
async fn check_traefik(shell: &mut Shell, configuration: &str) {
    std::fs::write(shell.path().join("traefik.yml"), configuration).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/check_traefik.py");
    let values = shell.run(&format!("python3 '{script}' traefik.yml")).await;
    let mut values = values.split_whitespace();
    let address = values.next().unwrap().replace("http://auth:8080", "$URL");
    let request = format!(
        "curl -si {address} -H \"Authorization: Bearer $KEY\" -H 'X-Forwarded-Method: POST' \
         -H 'X-Forwarded-Uri: /v1/things' -H 'X-Forwarded-For: 192.0.2.7'"
    );
    let response = shell.run(&request).await.to_lowercase();
    assert!(response.starts_with("http/1.1 200"), "{response}");
    let mut copied = 0;
    for header in values {
        assert!(response.contains(&format!("\n{}:", header.to_lowercase())), "{response}");
        copied += 1;
    }
    assert_eq!(copied, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_commands_work() {
    let settings = [("server.trusted_proxies", "127.0.0.1")];
    let DemoService { app, mut shell } = DemoService::start(&settings).await;
    let mut page = Page::read("docs/gateways.md");
    let [nginx, caddy] = [page.take("nginx"), page.take("caddyfile")];
    let [traefik, envoy] = [page.take("yaml"), page.take("yaml")];
    let [haproxy_script, apache_script] = [page.take("lua"), page.take("lua")];
    let [haproxy, apache] = [page.take("haproxy"), page.take("apache")];
    page.run(&mut shell).await;
    check_traefik(&mut shell, &traefik).await;
    let auth = app.url.strip_prefix("http://").unwrap().to_owned();
    let addresses = Addresses { auth, api: start_upstream().await };
    let gateways = [
        RunningGateway::nginx(&nginx, &addresses).await,
        RunningGateway::caddy(&caddy, &addresses).await,
        RunningGateway::envoy(&envoy, &addresses).await,
        RunningGateway::haproxy(&haproxy, &haproxy_script, &addresses).await,
        RunningGateway::apache(&apache, &apache_script, &addresses).await,
    ];
    for gateway in &gateways {
        gateway.check(&app).await;
    }
    let urls: Vec<_> = gateways.iter().map(|gateway| gateway.url.as_str()).collect();
    check_outage(&app, &urls).await;
}
