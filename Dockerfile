# Two stages: build with the toolchain, run without it.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock askama.toml ./
# Dependencies first, so that a change of the source does not build them again.
RUN mkdir -p src tests/api benches && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --release --locked --bin call2me-auth && rm -rf src
COPY config config
COPY migrations migrations
COPY .sqlx .sqlx
COPY src src
RUN touch src/main.rs src/lib.rs && cargo build --release --locked --bin call2me-auth

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home call2me
COPY --from=build /build/target/release/call2me-auth /usr/local/bin/call2me-auth
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD curl -fsS http://127.0.0.1:8080/readyz || exit 1
ENTRYPOINT ["call2me-auth"]
CMD ["serve"]
