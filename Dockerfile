# The blog of examples/ with flask-litestack as it is in this checkout.
FROM python:3.13-slim AS build
RUN python -m venv --without-pip /venv
COPY . /src
RUN pip --python /venv/bin/python install --no-cache-dir '/src[serve]' /src/examples/blog

FROM python:3.13-slim
RUN useradd --uid 1000 --no-create-home app && install --directory --owner app --mode 700 /data
# python:slim comes without bytecode, and as user 1000 each start would compile all that it imports.
RUN python -m compileall -q -x site-packages "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /venv /venv
COPY examples/blog/gunicorn.conf.py /app/
WORKDIR /app
USER app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 FLASK_APP=blog LITESTACK_DATA_PATH=/data PORT=8080
VOLUME /data
EXPOSE 8080
HEALTHCHECK --start-period=10s CMD ["python", "-ISc", "import os, urllib.request as web; web.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/up', timeout=5)"]
CMD ["gunicorn"]
