"""The fluency proxy separates English text from what is none."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.annotate.fluency  # noqa: F401
from pipeline.annotate.annotator import Batch, build_annotator

SENTENCES = """A dog runs along the beach at sunset
Two children are playing football in the park
An old wooden house near the lake in autumn
A red sports car parked in front of a hotel
The bride and groom cut their wedding cake
A man in a blue shirt is reading a newspaper
View of the mountains from our balcony
She holds an umbrella in the rain
A bowl of soup with bread and butter on a table
Young woman smiling at the camera
Sheep grazing in a green field under a cloudy sky
The president speaks to reporters outside the White House
Black and white portrait of an elderly fisherman
A cat sleeping on top of a laptop
Kitchen with white cabinets and a large window
Fans celebrate after the final match of the season
How to make a birdhouse out of recycled wood
This church was built in the 12th century
Close-up of a bee on a purple flower
People waiting for the train at the station
Modern living room with a grey sofa and wooden floor
My grandmother's recipe for apple pie
A narrow street in the old town of Lisbon
Boats in the harbour on a calm morning
A group of students working on a science project
Snow covers the roof of the barn
Hand drawn map of the island
Three glasses of white wine on a tray
A soldier hugs his daughter at the airport
The actress arrives at the premiere of her new film""".splitlines()
NOUN_PHRASES = """Golden retriever puppy
Vintage red bicycle
Mountain lake panorama
Fresh strawberry cheesecake
Green sea turtle
Old stone bridge
Abandoned railway station
Smiling young couple
Autumn leaves
Blue ceramic teapot
Medieval castle ruins
City skyline at night""".splitlines()
KEYWORDS = """cheap flights hotel booking travel vacation deals
wedding dress bridal gown lace white sale 2019
iphone case cover samsung galaxy leather wallet
nike shoes men running sneakers black size 10
home decor wall art canvas print poster modern abstract
free download wallpaper hd 1080p desktop background
summer beach ocean sea sand sun vacation travel tropical
best seo marketing services company agency online
dog cat pet animal cute funny puppy kitten
women fashion dress style outfit trend shop buy
tattoo design ideas sleeve men arm tribal
kitchen cabinets granite countertops remodel ideas cost
vector logo icon symbol sign business template set
car auto vehicle truck suv dealer used sale
halloween costume kids girls princess party dress up""".splitlines()
FOREIGN = """un chien sur la plage
eine Frau mit einem Regenschirm
una mujer con un paraguas en la calle
vecchia casa di legno vicino al lago
twee kinderen spelen voetbal in het park
en gammal kyrka vid sjön
stary drewniany dom nad jeziorem
um cachorro correndo na praia
vieille maison en bois près du lac
kapal di pelabuhan pada pagi hari
sahilde koşan bir köpek
собака на пляже
浜辺の犬
海滩上的狗
كلب على الشاطئ""".splitlines()
FILES = """IMG_4001.JPG
DSC0001
screenshot 2020-01-01 at 10.20.30
a8f3c9e1b2d4
banner-top_v2.png
product_main_800x600
9f8b-41d2-a6c3
s-l1600.jpg
hero_img_02
IMG_20190203_112233
P1010042
photo_2020_02_01
0a1b2c3d""".splitlines()


def scores(captions: list[str]) -> np.ndarray:
    batch = Batch(pa.table({"caption": pa.array(captions, pa.string())}))
    return np.asarray(build_annotator("fluency", {}).annotate(batch)["fluency"])


def area(good: list[str], bad: list[str]) -> float:
    """Area under the ROC curve."""
    good_N1, bad_1M = scores(good)[:, None], scores(bad)[None]
    return float(((good_N1 > bad_1M) + 0.5 * (good_N1 == bad_1M)).mean())


def shuffled(text: str) -> str:
    return "".join(random.Random(text).sample(text, len(text)))


NONE_OF_IT = [*KEYWORDS, *FOREIGN, *FILES, *(shuffled(one) for one in SENTENCES[::2])]


@pytest.mark.parametrize("bad", [KEYWORDS, FOREIGN, FILES, NONE_OF_IT], ids=["keywords", "foreign", "files", "all"])
def test_sentences_score_above_what_is_no_english_text(bad: list[str]) -> None:
    assert area(SENTENCES, bad) > 0.97


def test_the_demo_captions_score_above_what_is_no_english_text() -> None:
    captions = pq.read_table("jobs/demo/fixtures/metadata.parquet", columns=["caption"])["caption"].to_pylist()
    assert area(captions, NONE_OF_IT) > 0.97


def test_noun_phrases_are_not_told_from_keywords_as_the_docstring_says() -> None:
    assert area(NOUN_PHRASES, KEYWORDS) < 0.7


def test_scores_are_shares() -> None:
    found = scores(["", " ", "?!", "of the", *SENTENCES, *NONE_OF_IT])
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[:3] == 0).all()
