"""A driver on a real cluster that learns its key late; whatever it says to its workers goes through a recorder.

python secret_driver.py <master> <endpoint's URL> <JSON of conf> <file for the recorded bytes> <output>

Reads the key from stdin once the session runs, and prints one line of JSON: the settings and plans in words.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path

from driver import QUIET
from pyspark import cloudpickle
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812

import batch_infer as bi
from batch_infer.adapters.coordinator import DriverService


def record(target: tuple[str, int], path: Path) -> int:
    """A TCP proxy that keeps all that passes, both ways; its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    out = path.open("wb", buffering=0)

    def pass_on(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            out.write(data)
            sink.sendall(data)
        sink.close()

    def accept() -> None:
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(target)
            for ends in ((near, far), (far, near)):
                threading.Thread(target=pass_on, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def main() -> None:
    master, url, conf, recorded, output = sys.argv[1:]
    builder = SparkSession.builder.master(master).appName("batch_infer secret")
    for name, value in {**QUIET, **json.loads(conf)}.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    bi.register(spark)
    spark.range(2).count()  # the executors run before the key is known
    ports = {}
    plain = DriverService.address.fget

    def advertised(service):
        address = plain(service)
        if service not in ports:
            ports[service] = record((address.host, address.port), Path(recorded))
        return replace(address, port=ports[service])

    DriverService.address = property(advertised)
    os.environ["BATCH_INFER_TEST_KEY"] = sys.stdin.readline().strip()
    bi.register_endpoint("guarded", base_url=url, model="m", api_key="env:BATCH_INFER_TEST_KEY")
    df = spark.range(0, 40, 1, 4).withColumn("r", bi.ai_query("guarded", F.concat(F.lit("p "), "id"), details=True))
    df.write.mode("overwrite").parquet(output)
    asked = spark.sql("SELECT ai_query('guarded', concat('q ', id)) r FROM range(0, 8, 1, 2)")
    asked.collect()
    from batch_infer.contract.options import CallOptions
    from batch_infer.spark.planning import plan_column

    said = {
        "conf": repr(spark.sparkContext.getConf().getAll()) + repr(spark.sql("SET").collect()),
        "plan": df._jdf.queryExecution().toString() + asked._jdf.queryExecution().toString(),
        "closure": cloudpickle.dumps(plan_column(spark, CallOptions(endpoint="guarded"))).decode("latin-1"),
    }
    spark.stop()
    print("@@" + json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
