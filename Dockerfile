# syntax=docker/dockerfile:1
# Two images from one file, so that Python, Ray and our code are the same in both:
#   docker build --target head .   the CPU head: no torch
#   docker build --target gpu .    a GPU node; what it runs is `video-api node join`, or what a head that rents machines says
# Layers go from what never changes to what always does: a new version of our code is the last few megabytes.

# 3.12: that of the stock image from which rented nodes start (serve_app/cli/renting.py). A node needs its head's.
FROM python:3.12-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app

FROM base AS gpu-libraries
# OpenCV's wheel expects these of the system.
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
# CUDA comes with torch's wheels; the host brings the driver. This layer is the large one, and the hosts' caches know it.
RUN pip install torch==2.13.0

FROM gpu-libraries AS gpu
COPY pyproject.toml constraints.txt ./
# The dependencies alone, read from the one place that names them, so that a change of code doesn't install them again.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; e = p['optional-dependencies']; print(*p['dependencies'], *e['head'], *(n for n in e['gpu'] if n != 'video-api[head]'), sep='\n')" > wanted.txt \
    && pip install -c constraints.txt -r wanted.txt && rm wanted.txt
COPY deployments/ deployments/
COPY serve_app/ serve_app/
COPY cluster/ cluster/
COPY README.md LICENSE NOTICE ./
RUN pip install --no-deps -e .
# Credentials and weights. The folder dies with the machine, as it should. Root, since that is whose rented machines' disks
# and devices are; what is secret stays in the launcher all the same, see cluster/isolation.py.
ENV VIDEO_API_DATA_DIR=/data
# No entry point: rented machines are given another command (cluster/bootstrap), and providers put it behind that.
CMD ["video-api", "node", "join", "--state", "/data"]

FROM base AS head
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['head'], sep='\n')" > wanted.txt \
    && pip install -c constraints.txt -r wanted.txt && rm wanted.txt
COPY deployments/ deployments/
COPY serve_app/ serve_app/
COPY cluster/ cluster/
COPY configs/ configs/
COPY README.md LICENSE NOTICE ./
RUN pip install --no-deps -e .
# Whom Ray's processes run as: the launcher starts as root to be another than they, and gives up nothing to them.
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin ray \
    && install -d -m 0700 -o ray -g ray /data
# 10251 is the plan's port for HTTP: with it, nodes reach the API through the mesh as well. 2222 is the mesh's own.
ENV PORT=10251 MESH_PORT=2222 VIDEO_API_DATA_DIR=/data
EXPOSE 10251 2222
CMD ["video-api", "head", "--config", "configs/production.yaml"]
