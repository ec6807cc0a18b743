# The demo of mod_pool in a container: two sites in two pools, each under a user of its own.
#
#   docker build -t mod_pool-demo .
#   docker run --rm -p 127.0.0.1:8080:8080 -p 127.0.0.1:8443:8443 mod_pool-demo
#
# Then `curl http://alice.localhost:8080/` and what else it prints. `docker run --rm mod_pool-demo demo/check` tries
# itself.

FROM debian:12 AS build
WORKDIR /mod_pool
# The compiler's packages change seldom: a layer of their own.
COPY scripts scripts
COPY Cargo.toml Cargo.lock ./
RUN scripts/deps build
COPY . .
RUN make build

FROM debian:12
WORKDIR /mod_pool
COPY scripts scripts
COPY Cargo.toml ./
RUN scripts/deps demo && rm -rf /var/lib/apt/lists/*
COPY demo demo
COPY --from=build /mod_pool/build/mod_pool.so build/mod_pool.so
# A container's loopback is out of reach from outside it.
ENV DEMO_ADDRESS=0.0.0.0
EXPOSE 8080 8443
STOPSIGNAL SIGTERM
CMD ["demo/run"]
