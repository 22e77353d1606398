"""One local[2] session for all Spark tests, small and quiet; endpoints that count what they are asked."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

import batch_infer as bi
from batch_infer.testing import FaultEndpoint


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    session = (
        SparkSession.builder.master("local[2]")
        .appName("batch_infer tests")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.driver.memory", "1g")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    bi.register(session)
    yield session
    session.stop()


@pytest.fixture(scope="session")
def _shared_endpoint():
    with FaultEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(_shared_endpoint):
    """A well-behaved endpoint, registered as `echo` (chat) and `vectors` (embeddings), its counts at zero."""
    _shared_endpoint.reset()
    bi.register_endpoint("echo", base_url=_shared_endpoint.base_url, model="m")
    bi.register_endpoint("vectors", base_url=_shared_endpoint.base_url, model="m", task="embeddings")
    return _shared_endpoint


@pytest.fixture
def start_endpoint():
    """Starts further endpoints with behaviour of their own, registered under a name."""
    started = []

    def start(name, *, fields=None, **settings):
        endpoint = FaultEndpoint(**settings)
        started.append(endpoint)
        bi.register_endpoint(name, base_url=endpoint.base_url, model="m", **(fields or {}))
        return endpoint

    yield start
    for endpoint in started:
        endpoint.close()


@pytest.fixture
def no_ledger(spark):
    """Every call is sent, whatever earlier tests have asked."""
    spark.conf.set("spark.batch_infer.ledger", "off")
    yield
    spark.conf.unset("spark.batch_infer.ledger")


PROMPTS = [None if i in (3, 17) else f"prompt {i:02}" for i in range(20)]


@pytest.fixture
def prompts(spark):
    """A view `prompts(id, body)` of 20 rows in 2 partitions, 2 of them NULL; gives the rows."""
    rows = list(enumerate(PROMPTS))
    spark.createDataFrame(rows, "id INT, body STRING").coalesce(1).repartitionByRange(2, "id").createOrReplaceTempView(
        "prompts"
    )
    yield rows
    spark.catalog.dropTempView("prompts")
