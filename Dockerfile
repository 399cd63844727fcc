# syntax=docker/dockerfile:1

FROM ghcr.io/astral-sh/uv:0.13.9-python3.13-trixie-slim AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /app
# What changes seldom comes first: dependencies are built again only when the lock file changes.
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-dev --no-install-project
COPY README.md ./
COPY streams ./streams
RUN uv sync --locked --no-dev --no-editable

FROM python:3.13-slim-trixie
COPY --from=build /app/.venv /app/.venv
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 STREAMS_HTTP_HOST=0.0.0.0
# A number, so that whoever runs it can see that it is not root; nothing is written but to /tmp.
USER 10001:10001
WORKDIR /tmp
EXPOSE 6066
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:6066/healthz', timeout=4)"]
ENTRYPOINT ["streams"]
CMD ["worker"]
