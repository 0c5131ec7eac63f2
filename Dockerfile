# Tailrace's processes: `docker run tailrace capture SOURCE`, `apply TARGET`, `run`, `status`, ...
# The config file goes to /srv/tailrace/tailrace.yaml. No Kafka is inside: name one in kafka.brokers.

FROM python:3.11-slim AS build
WORKDIR /build
RUN python -m venv /opt/tailrace
COPY requirements-run.lock .
RUN /opt/tailrace/bin/pip install --no-cache-dir --require-hashes -r requirements-run.lock
COPY pyproject.toml README.md LICENSE ./
COPY streamer streamer
COPY consumers consumers
RUN /opt/tailrace/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --create-home --home-dir /srv/tailrace tailrace
COPY --from=build /opt/tailrace /opt/tailrace
ENV PATH=/opt/tailrace/bin:$PATH PYTHONUNBUFFERED=1
USER tailrace
WORKDIR /srv/tailrace
# A process that answers is alive; whether its work goes well is for `tailrace status`. Start capture, apply and
# run with --metrics-port 9464, the port that is asked here.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9464/metrics', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tailrace"]
CMD ["run", "--metrics-port", "9464"]
