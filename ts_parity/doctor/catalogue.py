"""All checks, once: docs/doctor.md, the table, the JSON and the exit code are made from this list.

Ids stay: runbooks name them. The hundreds tell the category. A check that goes takes its id with it.
"""

from __future__ import annotations

from ts_parity.doctor import models, places, protection, reach
from ts_parity.doctor.check import ERROR, NOTE, WARNING, Check
from ts_parity.errors import OUT_OF_REACH, OUTSIDE, WRONG_INPUT

MACHINE = "this machine"
INSTANCES = "instances"
MODELS = "models"
PROTECTION = "protection"
PROXY = "the running proxy"

CHECKS = (
    Check(
        "TSP-101", MACHINE, WARNING, "clients get enough connections",
        "Each connection takes a file descriptor. Clients get what instances, the admin port and logs leave over; "
        "those beyond are refused before the proxy has read what they want. Looked up with the limit to which a proxy "
        "started in this shell would raise its own.",
        "Raise the hard limit of open files (ulimit -Hn, LimitNOFILE of a systemd unit), or lower max_waiting.",
        OUTSIDE, reach.descriptors,
    ),
    Check(
        "TSP-102", MACHINE, NOTE, "the engine is compiled",
        "Plain Python serves in the same way and takes more of a core for each query.",
        "Install a wheel for this Python and platform, or build with a C compiler at hand.",
        OUTSIDE, reach.uncompiled,
    ),
    Check(
        "TSP-103", MACHINE, ERROR, "no certificate has expired",
        "Those of the inference port, of instances at https addresses, and those that are shown to instances; of each "
        "chain, the certificate that expires first counts.",
        "Renew it. The proxy reads its files again by itself when they change; an instance must be restarted.",
        OUTSIDE, reach.expired,
    ),
    Check(
        "TSP-104", MACHINE, WARNING, f"no certificate expires within {reach.SOON_DAYS:.0f} days",
        "Most are renewed a month before they expire. One that is so near its end was not.",
        "See why it has not been renewed, and renew it.",
        OUTSIDE, reach.ending,
    ),
    Check(
        "TSP-201", INSTANCES, ERROR, "every instance answers",
        "At the address of its management API, which is how a proxy finds out what it hosts.",
        "Start the instance, or mend its address (--endpoint URL,management=URL) and the network between.",
        OUTSIDE, reach.silent_instances,
    ),
    Check(
        "TSP-202", INSTANCES, ERROR, "every address is of the API that it is given for",
        "TorchServe has three ports, 8080 for inference, 8081 for management and 8082 for metrics, and the wrong one "
        "answers 404. Management is looked for at the inference port + 1 if nothing else is said.",
        "Give the right ports: --endpoint http://HOST:8080,management=http://HOST:8081.",
        WRONG_INPUT, reach.wrong_ports,
    ),
    Check(
        "TSP-203", INSTANCES, ERROR, "the management keys are accepted",
        "Without its key nobody can tell what an instance hosts, so it only gets requests that are passed through.",
        "Set management_token or management_token_file of that --endpoint. TorchServe writes its keys into "
        "key_file.json when it starts, and each instance makes its own.",
        WRONG_INPUT, reach.management_keys,
    ),
    Check(
        "TSP-204", INSTANCES, ERROR, "the inference keys are accepted",
        "Asked with a ping, which takes the same key as a prediction.",
        "Set token or token_file of that --endpoint.",
        WRONG_INPUT, reach.inference_keys,
    ),
    Check(
        "TSP-205", INSTANCES, WARNING, "the files with keys are there",
        "TorchServe writes its key file when it starts and removes it when it stops, so it may be missing for a while.",
        "Start the instance, or mend the path.",
        WRONG_INPUT, reach.key_files,
    ),
    Check(
        "TSP-206", INSTANCES, WARNING, "every instance hosts a model with a READY worker",
        "Workers that do not start are in the instance's log, and TorchServe tries them again and again.",
        "See the instance's log; then register the model again, or scale it up (PUT /models/NAME?min_worker=1).",
        OUTSIDE, reach.idle_instances,
    ),
    Check(
        "TSP-301", MODELS, WARNING, "all instances host the same versions of a model",
        "Normal while a new version is rolled out. Otherwise each version has fewer machines than one thinks.",
        "Finish the rollout: `ts-parity register` puts one archive on all instances.",
        WRONG_INPUT, models.versions,
    ),
    Check(
        "TSP-302", MODELS, WARNING, "all instances have the same default version",
        "A query that names no version would be answered by one model here and by another there.",
        "Set one default version on all instances (PUT /models/NAME/VERSION/set-default).",
        WRONG_INPUT, models.default_versions,
    ),
    Check(
        "TSP-303", MODELS, ERROR, "all instances have the same weights of a version",
        "Wrapped archives tell a fingerprint of their weights. With several, the same query has several answers, and "
        "nothing can be protected.",
        "Register one archive on all instances: `ts-parity register` replaces it on one after another.",
        WRONG_INPUT, models.weights,
    ),
    Check(
        "TSP-304", MODELS, ERROR, "all instances have the same raw output of a version",
        "Outputs of several shapes or types cannot stand in one group.",
        "Register one archive on all instances, and see whether one of them computes in half precision.",
        WRONG_INPUT, models.outputs,
    ),
    Check(
        "TSP-305", MODELS, WARNING, "an archive is wrapped on all instances or on none",
        "A parity code needs all of them wrapped: a query that is finished elsewhere may go to any.",
        "Register the wrapped archive (`ts-parity package`) on all instances.",
        WRONG_INPUT, models.wrapped,
    ),
    Check(
        "TSP-306", MODELS, WARNING, "instances were registered with the same batch size, batch delay and timeout",
        "The same query would take longer on one instance than on the other, and look slow there.",
        "Register the model with the same values everywhere, best from its own config (model-config.yaml).",
        WRONG_INPUT, models.defaults,
    ),
    Check(
        "TSP-307", MODELS, WARNING, "no query waits for a batch that does not fill",
        "TorchServe waits from a batch's first request until the batch is full or maxBatchDelay has passed. At the "
        "rate of the last five minutes too few requests come within that time, so nearly every query waits all of it.",
        "Register the model with a smaller maxBatchDelay, or with batchSize 1. Workers that are free need no batches.",
        WRONG_INPUT, models.batch_delay,
    ),
    Check(
        "TSP-308", MODELS, WARNING, "an instance is given no more places than it has",
        "What it cannot work on waits inside of TorchServe, which never cancels, where no other instance can take it.",
        "Leave places out; it is then READY workers x batch size of each model.",
        WRONG_INPUT, models.too_many_places,
    ),
    Check(
        "TSP-309", MODELS, NOTE, "an instance is given all the places that it has",
        "Some of its workers stay idle. Right where they share one device that is busy with fewer.",
        "Leave places out, unless it was measured that fewer are faster.",
        WRONG_INPUT, models.too_few_places,
    ),
    Check(
        "TSP-310", MODELS, WARNING, "an instance answers as many at once as it is given places",
        "Workers share processors, a device or a disk, so two workers may take as long for two queries as one worker "
        "that answers them one after the other. Measured only with --measure-places BODY, which loads the instances: "
        f"copies of one body, at most {places.MOST_COPIES} at once, each number {places.TRIES} times, until the "
        f"slowest takes {places.GROWN:g} times what one takes alone, for at most {places.LONGEST_S:.0f} seconds an "
        "instance. What else the machine has to do meanwhile counts as its own.",
        "Set places of that --endpoint to what was measured, or give the model fewer workers.",
        WRONG_INPUT, models.measured_places,
    ),
    Check(
        "TSP-401", PROTECTION, WARNING, "every protection that is registered is used",
        "The proxy says why it does not use one for its model.",
        "Mend what the reason names.",
        OUT_OF_REACH, protection.protections_not_used,
    ),
    Check(
        "TSP-402", PROTECTION, NOTE, "every model has a protection",
        "Late queries of a model without one get second copies only, as far as extra_work goes.",
        "Make one: `ts-parity train --archive MODEL.mar --inputs BODIES`, and register what its report recommends. "
        "Before another server than TorchServe: `ts-parity record`, then `train --from-pairs` (docs/any-server.md).",
        OUT_OF_REACH, protection.no_protections,
    ),
    Check(
        "TSP-403", PROTECTION, WARNING, "every protection is made for what is deployed",
        "It names the model, the version and the weights that it was made for.",
        "Make it again from the archive that is deployed (`ts-parity train`), or unregister it.",
        OUT_OF_REACH, protection.orphans,
    ),
    Check(
        "TSP-404", PROTECTION, WARNING, "no model stands in one failure domain alone",
        "Second copies and protections go to another failure domain, since what is late on a machine is late for all "
        "that it does. If all instances of a model share a domain, there is nothing to go to.",
        "Put the model or its protection on a second machine, or tell the domains apart (domain= of --endpoint).",
        OUT_OF_REACH, protection.one_domain,
    ),
    Check(
        "TSP-405", PROTECTION, WARNING, "instances take requests as large as groups",
        "A group carries the bodies of k queries, and an instance refuses requests over its max_request_size. Found "
        "out by announcing a request of k times the largest body that the running proxy has seen for the model "
        "(Expect: 100-continue) and not sending it. Before a start max_body_bytes stands in for that, if it is set: "
        "its default says nothing of what clients send.",
        "Raise max_request_size in the config.properties of the instances that host protections to that size, or lower "
        "the proxy's max_body_bytes to what clients send.",
        WRONG_INPUT, protection.large_groups,
    ),
    Check(
        "TSP-406", PROTECTION, WARNING, "answers of groups fit into what an instance may answer",
        "A backup answers a group with k outputs at once, a parity model with one. TorchServe cuts off whatever "
        "exceeds its max_response_size. It does not report that limit, so this check compares with the default.",
        "Raise max_response_size in the config.properties of the instances that host the protection.",
        WRONG_INPUT, protection.large_answers,
    ),
    Check(
        "TSP-407", PROTECTION, WARNING, "a protection on trial can pass",
        "It is compared with the deployed model's own answers before it may answer clients. Some trials cannot end "
        "well: answers that cannot be compared, that differ, that never come, or no idle place to try it on.",
        "See what differs or fails. Old weights on one side are the usual cause; then make the protection again from "
        "the archive that is deployed. Where no place is idle, add machines or lower the load.",
        OUT_OF_REACH, protection.lost_trials,
    ),
    Check(
        "TSP-408", PROTECTION, ERROR, "no protection and no second copy contradicts the deployed model",
        "The proxy has taken out what contradicts it, or fails each time. It tries again after a pause.",
        "If it fails, see whether it is there, under the name that it was given, and its server's log. If it "
        "contradicts, see what differs: old weights on one side, an archive that is not the same everywhere, or a "
        "model that draws random numbers (declare `repeatable: false`).",
        OUT_OF_REACH, protection.taken_out,
    ),
    Check(
        "TSP-409", PROTECTION, WARNING, "a student takes and gives what its model does",
        "A late query's own body goes to the student, and the student's answer to the model's client. So names, "
        "datatypes and shapes of both have to be the same: a shape that is fixed where the model's is not (-1) refuses "
        "some requests. Looked up where the server tells them (Triton, MLServer, OpenVINO Model Server; KServe's if "
        "the model says so).",
        "Give the student the model's inputs and outputs, under the same names (`ts-parity train --from-pairs` does).",
        WRONG_INPUT, protection.other_tensors,
    ),
    Check(
        "TSP-501", PROXY, ERROR, "the proxy answers at its admin port",
        "Everything that only a running proxy knows is asked there.",
        "Start it, give its address (--admin URL), or check the fleet alone (--pre).",
        OUTSIDE, protection.proxy_silent,
    ),
    Check(
        "TSP-502", PROXY, WARNING, "every instance serves",
        "As the status page says it: suspect, silent, ejected or down, and why.",
        "See the log of that instance, its processes and its machine. Its queries are answered by others meanwhile.",
        OUTSIDE, protection.troubled_instances,
    ),
    Check(
        "TSP-503", PROXY, WARNING, "the proxy runs with the instances that are configured",
        "A configuration that was changed after the start is not in force until the proxy has read it again.",
        "Have it read its file again (`ts-parity reload`), or give the configuration that it was started with.",
        WRONG_INPUT, protection.other_instances,
    ),
    Check(
        "TSP-504", PROXY, NOTE, "the proxy is of this version",
        "It may not tell all that the checks look at.",
        "Start the proxy again after an upgrade.",
        OUTSIDE, protection.other_version,
    ),
    Check(
        "TSP-505", PROXY, WARNING, "the configuration was good when the proxy last read it",
        "The proxy refused what it read again (SIGHUP, `ts-parity reload`) and goes on as before. At its next start it "
        "would not start.",
        "Mend what it names (`ts-parity config check FILE` says all of it), then `ts-parity reload`.",
        WRONG_INPUT, protection.refused_reload,
    ),
    Check(
        "TSP-506", PROXY, NOTE, "no setting waits for a restart",
        "A running proxy keeps its addresses, certificates' paths, processes and a few more as they were at its start.",
        "Start the proxy again, one after another where there are several.",
        OUTSIDE, protection.waits_for_restart,
    ),
)  # fmt: skip
CATEGORIES = tuple(dict.fromkeys(check.category for check in CHECKS))
