# Replaces the image `postgres` where no registry can be reached: the same user, folders and variables.
FROM python:3.11-slim
ENV LANG=C.UTF-8 PGDATA=/var/lib/postgresql/data PATH=/usr/lib/postgresql/15/bin:$PATH
# hadolint ignore=DL3008
RUN groupadd --gid 999 postgres && useradd --uid 999 --gid 999 --home-dir /var/lib/postgresql postgres \
    && apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends postgresql-15 \
    && rm -rf /var/lib/apt/lists/* && install --directory --owner=999 --group=999 --mode=1777 "$PGDATA"
COPY --chmod=755 postgres-entrypoint /usr/local/bin/
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
USER 999
CMD ["postgres-entrypoint"]
