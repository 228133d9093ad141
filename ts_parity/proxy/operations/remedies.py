"""What to do about each problem of `/status`.

A problem is a sentence that says what is wrong and where; its remedy is what an operator can do. Each is found by the
words that all problems of its kind have in common, which a test looks for in the code that makes them.
"""

from __future__ import annotations

from typing import Final

REMEDIES: Final = (
    ("configuration was not reloaded", "Mend what it names (`ts-parity config check FILE` says all of it), then "
     "`ts-parity reload`."),
    ("is ejected: ", "Nothing, if it comes back by itself; probes find out. Else look at that instance's own log and "
     "at what else runs on its machine, and restart its workers."),
    ("no answer to ", "Look whether the instance's workers are frozen, swapping, or waiting for a device: its log, its "
     "processes, its machine. Its queries are answered by others meanwhile."),
    ("every prediction is answered with 503", "Start the instances, or mend the addresses (--endpoint) and the network "
     "between."),
    ("has no READY worker", "See the instance's log for why its workers do not start; then scale the model up (PUT "
     "/models/NAME?min_worker=1) or register it again."),
    ("did not answer describe", "See that instance's log: a worker that is busy or frozen cannot answer. Its other "
     "models are used."),
    ("has not answered describe yet", "Nothing: it is used once it has answered."),
    ("disagree about", "Register one archive on all instances: `ts-parity register` replaces it on one after another."),
    ("needs wrapped archives", "Wrap the deployed archive (`ts-parity package`) and register it, or make a `student` "
     "or `exact` protection, which need nothing of it."),
    ("its handler cannot be coded", "Write the line that the reason names into the archive's config, or make a "
     "`student` or `exact` protection."),
    ("is not coded: ", "See the reason; `/status` names what was expected of the archives."),
    ("has protections of several codes", "Unregister the one that is not wanted (`ts-parity unregister`), or choose "
     "with the setting protect."),
    ("no READY endpoint for protection row", "Start that row's workers again, or register all rows of the protection."),
    ("are of more than one training", "Register all rows of one training."),
    ("it refuses groups", "Make the protection again with this version's `ts-parity train`."),
    ("is not repeatable", "If the same request may be answered twice, declare what the reason names; else unregister "
     "the protection, which cannot be used."),
    ("it was made for other weights", "Make the protection again from the archive that is deployed (`ts-parity "
     "train`), or deploy the archive that it was made for."),
    ("it protects ", "Unregister the protection, or deploy the model and version that it protects."),
    ("the default version of ", "Set one default version on all instances (PUT /models/NAME/VERSION/set-default)."),
    ("requests are only passed through to it", "Give the proxy the key of the management API: management_token or "
     "management_token_file of that --endpoint."),
    ("asked again regularly", "Start the instance, or mend its address (--endpoint URL,management=URL)."),
    ("used as last seen", "Mend the management port or its key; the instance serves meanwhile as it did."),
    ("contradict", "Register one archive on all instances; if the model draws random numbers or keeps state, declare "
     "`repeatable: false`."),
    ("answers could be compared", "The answers hold no decision that can be compared: use code `exact`, or let the "
     "handler return a label or scores."),
    ("in a row brought nothing", "See whether the protection is there, under the name that it was given, and the log "
     "of its server. It is tried again by itself after a pause."),
    ("protection ", "See what differs: old weights on one side are the usual cause. Make the protection again from the "
     "deployed archive. It is tried again by itself after a pause."),
    ("open files", "Raise the limit of open files (ulimit -n, LimitNOFILE) or let clients share connections."),
    ("gives its parent no answer", "It is frozen, swapping or in a debugger. Let it go on, or kill it by its pid: "
     "another is started in its place."),
    ("runs settings from before a reload", "Nothing, if it is over soon: it changes as soon as it can. Else kill it by "
     "its pid: another is started with the new ones."),
    ("process", "See the proxy's own log for why the process ended; it is started again by itself."),
)  # fmt: skip
OTHERWISE: Final = "See the proxy's log for what led to it, and docs/behaviour.md for what it means."


def remedy(problem: str) -> str:
    return next((what for words, what in REMEDIES if words in problem), OTHERWISE)
