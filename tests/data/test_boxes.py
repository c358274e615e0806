"""Boxes of detectors and trackers: what each format means, and what is refused or left out."""

from __future__ import annotations

import json

import pytest

from fmcnet.data.boxes import Box, read_boxes
from fmcnet.errors import DataError


def write(tmp_path, text, name="boxes.txt"):
    path = tmp_path / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def test_motchallenge_frames_count_from_1(tmp_path):
    boxes = read_boxes(write(tmp_path, "1,7,10,20,30,40,0.9,-1,-1,-1\n3,-1,1.5,2,3,4,1,-1,-1,-1\n"))
    assert (boxes.format, boxes.first, boxes.total, boxes.notes) == ("MOTChallenge", 1, 2, [])
    assert boxes.of_frame == {
        1: [Box(10, 20, 40, 60, "7", "frame 1, line 1")],
        3: [Box(1.5, 2, 4.5, 6, "", "frame 3, line 2")],
    }


def test_motchallenge_with_a_frame_0_counts_from_0(tmp_path):
    boxes = read_boxes(write(tmp_path, "0 0 10 20 30 40\n1 0 10 20 30 40\n"))
    assert boxes.first == 0
    assert boxes.of_frame[0][0].track == "0"
    assert "count from 0" in boxes.notes[0]


@pytest.mark.parametrize("separator", [",", ", ", "\t,", ";", "\t;", "\t", " \t", " ", "  "])
def test_one_separator_and_a_decimal_comma_where_it_does_not_separate(tmp_path, separator):
    row = separator.join(["1", "7", "102.25", "51.5", "50.25", "100.75", "0.5", "-1", "-1", "-1"])
    boxes = read_boxes(write(tmp_path, row if "," in separator else row.replace(".", ",")))
    assert boxes.of_frame == {1: [Box(102.25, 51.5, 152.5, 152.25, "7", "frame 1, line 1")]}


@pytest.mark.parametrize("missing", ["", "NaN", "None", "-1"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_box_without_an_id_has_no_track(tmp_path, separator, missing):
    row = f"1,{missing},100,50,20,90,0.5,,,".replace(",", separator)
    boxes = read_boxes(write(tmp_path, row))
    assert boxes.of_frame == {1: [Box(100, 50, 120, 140, "", "frame 1, line 1")]}


def test_an_empty_value_does_not_hide_the_class(tmp_path):
    rows = ["1,1,0,0,9,9,1,3,", "1,2,0,0,9,9,1,3,0.5,", "1,3,0,0,9,9,1,1,"]
    boxes = read_boxes(write(tmp_path, "\n".join(rows)))
    assert [box.track for box in boxes.of_frame[1]] == ["3"]
    assert boxes.left_out.counts == {"no person by its class": 2}


def test_motchallenge_ground_truth_leaves_out_what_is_no_person(tmp_path):
    rows = [
        "1,1,0,0,9,9,1,1,1",
        "1,2,0,0,9,9,0,1,1",
        "1,3,0,0,9,9,1,3,0.5",
        "2,4,0,0,9,9,1,7,0.5",
        "2,5,0,0,9,9,1,1,0",  # Datumaro and CVAT: partly hidden
    ]
    boxes = read_boxes(write(tmp_path, "\n".join(rows)))
    assert [box.track for boxes in boxes.of_frame.values() for box in boxes] == ["1", "4", "5"]
    assert boxes.left_out.counts == {
        "of confidence 0, which marks a box as ignored": 1,
        "no person by its class": 1,
    }
    assert boxes.left_out.first["no person by its class"] == ["frame 1, line 3"]


@pytest.mark.parametrize(
    ("rows", "tracks", "note"),
    [
        (
            "1,1,0,0,9,9,1,1,0,0|1,2,0,0,9,9,1,4,0,2|2,3,0,0,9,9,1,2,1,0|2,0,0,0,9,9,0,0,0,0",
            "13",
            "VisDrone's",
        ),
        ("1,1,0,0,9,9,0.9,2|1,2,0,0,9,9,0.8,0", "12", "the eighth value is 0, 2, without a name"),
        ("1,1,0,0,9,9,0.9,0,-1,-1|1,2,0,0,9,9,0.8,7,-1,-1", "12", "the eighth value is 0, 7, without a name"),
        ("1,1,0,0,9,9,0.9,0,0,0|1,2,0,0,9,9,0.8,0,0,0", "12", None),  # all of one class
        ("1,1,0,0,9,9,1,-1,-1,-1|1,2,0,0,9,9,1,-1,-1,-1", "12", None),
        ("1,1,0,0,9,9,1,4.5,2,0|1,2,0,0,9,9,1,-3,0,0", "12", None),  # a place in the world
    ],
)
def test_classes_of_mot_files_that_are_not_motchallenges(tmp_path, rows, tracks, note):
    boxes = read_boxes(write(tmp_path, rows.replace("|", "\n")))
    assert "".join(box.track for boxes in boxes.of_frame.values() for box in boxes) == tracks
    assert [note in found for found in boxes.notes] == ([True] if note else [])
    if note == "VisDrone's":
        assert boxes.left_out.counts["no person by its class"] == 1


def coco(**more):
    images = [
        {"id": 5, "file_name": "a/1.jpg", "width": 64, "height": 48},
        {"id": 6, "file_name": "2.jpg", "frame_id": 4},
    ]
    one = {"id": 1, "image_id": 5, "bbox": [1, 2, 3, 4], "category_id": 1}
    return {
        "images": images,
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
        "annotations": [
            {**one, "attributes": {"track_id": 9}},
            {**one, "category_id": 3},
            {**one, "iscrowd": 1},
        ],
        **more,
    }


def test_coco_frames_are_names_and_other_classes_are_counted(tmp_path):
    boxes = read_boxes(write(tmp_path, coco()))
    assert (boxes.format, boxes.first, boxes.total) == ("COCO", None, 3)
    assert boxes.of_frame == {"a/1.jpg": [Box(1, 2, 4, 6, "9", "a/1.jpg, annotation 1")], "2.jpg": []}
    assert boxes.sizes == {"a/1.jpg": (64, 48)}
    assert boxes.numbers == {"2.jpg": 4}
    assert boxes.left_out.counts == {"no person by its class": 1, "a crowd, or marked as ignored": 1}


def test_coco_without_a_person_category_takes_all_with_a_note(tmp_path):
    boxes = read_boxes(write(tmp_path, coco(categories=[{"id": 1, "name": "object"}])))
    assert len(boxes.of_frame["a/1.jpg"]) == 2
    assert "object" in boxes.notes[0]


def test_a_list_of_coco_results(tmp_path):
    found = [{"image_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}, {"image_id": "x", "bbox": [0, 0, 9, 9]}]
    assert list(read_boxes(write(tmp_path, found)).of_frame) == [3, "x"]


CSV = "x_min,y_min,x_max,y_max,class_id,confidence,tracker_id"


def test_supervision_frames_count_from_0(tmp_path):
    rows = f"{CSV},frame_index,class_name\n1,2,4,8,0,0.9,5,0,person\n1,2,4,8,2,0.9,,1,car\n1,2,4,8,0,1,,1,person\n"
    boxes = read_boxes(write(tmp_path, rows))
    assert (boxes.format, boxes.first, boxes.total) == ("supervision", 0, 3)
    assert boxes.of_frame == {
        0: [Box(1, 2, 4, 8, "5", "frame 0, line 2")],
        1: [Box(1, 2, 4, 8, "", "frame 1, line 4")],
    }
    assert boxes.left_out.counts == {"no person by its class": 1}


def test_supervision_frames_may_be_names(tmp_path):
    boxes = read_boxes(write(tmp_path, f"{CSV},file_name\n1,2,4,8,0,,1,a.jpg\n1,2,4,8,2,,1,b.jpg\n"))
    assert (boxes.first, list(boxes.of_frame)) == (None, ["a.jpg", "b.jpg"])
    assert "class_id is 0, 2" in boxes.notes[0]
    boxes = read_boxes(write(tmp_path, f"{CSV},file_name\n1,2,4,8,0,,1,000003\n"))
    assert (boxes.first, list(boxes.of_frame)) == (None, ["000003"])


@pytest.mark.parametrize(
    ("column", "value", "frame"),
    [
        ("frame", "000003", "000003"), ("frame_id", "03", "03"), ("frame", "30", 30), ("frame_id", "0", 0),
        ("frame_index", "000003", 3), ("frame_number", "03", 3), ("frame_index", "0.0", 0), ("frame", "3.0", 3),
        ("frame", "a_1.0", "a_1.0"), ("frame", "a_1.00", "a_1.00"), ("frame_id", "17.50", "17.50"),
        ("frame", "17.00", 17), ("image", "17.00", "17.00"),
    ],
)  # fmt: skip
def test_a_frame_that_begins_with_0_is_a_name(tmp_path, column, value, frame):
    rows = f"{CSV},{column}\n1,2,9,9,0,,1,{value}\n1,2,9,9,0,,1,12\n"
    found = read_boxes(write(tmp_path, rows)).of_frame
    assert list(found) == [frame, "12" if isinstance(frame, str) else 12]


@pytest.mark.parametrize(
    ("kind", "classes", "said"),
    [
        ("csv", ["0", "0"], None), ("csv", ["2", "2"], "class_id is 2,"), ("csv", ["0", "7"], "class_id is 0, 7,"),
        ("coco", [1, 1], None), ("coco", [3, 3], "category_id is 3,"), ("coco", [1, 3], "category_id is 1, 3,"),
    ],
)  # fmt: skip
def test_classes_without_names_are_told_unless_they_are_persons(tmp_path, kind, classes, said):
    rows = f"{CSV},frame\n" + "".join(f"1,2,9,9,{one},,{at},{at}\n" for at, one in enumerate(classes))
    found = [
        {"image_id": f"{at}", "bbox": [1, 2, 9, 9], "category_id": one} for at, one in enumerate(classes)
    ]
    boxes = read_boxes(write(tmp_path, rows if kind == "csv" else found))
    assert [said in note for note in boxes.notes] == ([True] if said else [])


def test_columns_and_fields_that_are_not_read_are_told(tmp_path):
    usual = f"{CSV},class_name,area,iscrowd,frame_index"
    assert read_boxes(write(tmp_path, f"{usual}\n1,2,9,9,0,1,7,person,49,0,0\n")).notes == []
    odd = usual.replace("tracker_id", "track_id")
    told = read_boxes(write(tmp_path, f"{odd},pid,\n1,2,9,9,0,1,7,person,49,0,0,anna,\n")).notes
    with_room = "; people.csv takes columns pid, camera, time and tags"
    assert told == [f"not read: 'track_id' (did you mean 'tracker_id'?), 'pid'{with_room}"]
    found = {"image_id": "a", "bbox": [1, 2, 9, 9], "category_id": 1, "segmentation": [], "score": 1}
    assert read_boxes(write(tmp_path, [found])).notes == []
    [told] = read_boxes(write(tmp_path, [{**found, "image_id": 1}])).notes
    assert "image_id of a results list is taken as the frame's number" in told
    assert read_boxes(write(tmp_path, [{**found, "camera": "gate"}])).notes == [
        f"not read: 'camera'{with_room}"
    ]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_of_a_spreadsheet(tmp_path, separator):
    text = f"{CSV},frame\n1.5,2.25,40.5,80,0,0.9,5.0,3\n"
    expected = read_boxes(write(tmp_path, text))
    commas = text.replace(",", separator).replace(".", ",")
    boxes = read_boxes(write(tmp_path, commas))
    assert (boxes.of_frame, boxes.notes, boxes.first) == (expected.of_frame, expected.notes, expected.first)
    assert boxes.of_frame[3] == [Box(1.5, 2.25, 40.5, 80.0, "5", "frame 3, line 2")]
    with pytest.raises(DataError, match=r"line 2: '1\.500\.5' is no number"):
        read_boxes(write(tmp_path, commas.replace("1,5", "1,500,5", 1)))


def test_semicolons_of_a_spreadsheet(tmp_path):
    boxes = read_boxes(write(tmp_path, f"{CSV},frame\n1,2,4,8,0,1,5,3\n".replace(",", ";")))
    assert boxes.of_frame == {3: [Box(1, 2, 4, 8, "5", "frame 3, line 2")]}


def test_a_track_twice_in_a_frame_is_told(tmp_path):
    text = "1,5,0,0,9,9,1\n2,5,0,0,9,9,1\n1,5,9,0,9,9,1\n2,6,0,0,9,9,1\n1,-1,0,0,9,9,1\n1,-1,9,0,9,9,1\n"
    assert ["1 times a track has several boxes in one frame, the first track 5 in frame 1" in note
            for note in read_boxes(write(tmp_path, text)).notes] == [True]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no file of boxes"),
        ("these are notes\n", "no file of boxes"),
        ("1,1,2,3,4\n", "line 1: 5 values"),
        ("1,1,2,3,4,x\n", "line 1: 'x' is no number"),
        ("1,1,nan,3,4,5\n", "line 1: 'nan' is no finite number"),
        ("1,1,2,3,4,5\n1.5,1,2,3,4,5\n", "line 2: frame '1.5' is no whole number"),
        ("-1,1,2,3,4,5\n", "frame -1 is negative"),
        ("1,18446744073709551615,2,3,4,5\n", "id '18446744073709551615' is too large"),
        (f"{CSV},frame_index\n1,2,3,4,0,1,1,-1\n", "line 2: frame_index -1 is negative"),
        ("1,1,2,,4,5\n", "line 1: '' is no number"),
        ("1;1;2;3;4;5\n2,1,2,3,4,5\n", "line 2: 1 value between ';'"),
        ("1 1 2,5,3 4 5\n", "line 1: 5 values"),
        ("{", "no JSON"),
        ("{}", "lacks images"),
        ("[]", "holds no box"),
        ('[{"image_id": 1, "bbox": [1, 2, 3]}]', "annotation 1: bbox is not"),
        ('[{"bbox": [1, 2, 3, 4]}]', "annotation 1: no image_id"),
        (coco(annotations=[{"image_id": 7, "bbox": [1, 2, 3, 4]}]), "image_id 7 is that of no image"),
        (coco(images=[{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]), "stands there twice"),
        (f"{CSV}\n1,2,3,4,0,1,1\n", "no column of the frame"),
        (f"{CSV},frame\n1,2,3,4,0,1\n", "line 2: not 8 values"),
        (f"{CSV},frame\n1,2,3,4,0,1,1,\n", "line 2: frame is empty"),
        (f"{CSV},frame\n1,2,inf,4,0,1,1,1\n", "line 2: 'inf' is no finite number"),
        (f'{CSV},file_name\n1,2,3,4,0,1,1,"a\n1.jpg"\n', r"file_name 'a\n1.jpg' holds the line break U+000A"),
        (f'{CSV},frame\n"1\n2",2,30,4,0,1,1,1\n', r"'1\n2' is no number"),
        (f"{CSV},frame\n", "holds no box"),
    ],
)
def test_faults_are_named(tmp_path, text, said):
    with pytest.raises(DataError) as error:
        read_boxes(write(tmp_path, text))
    assert said in str(error.value)
    assert "boxes.txt" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "0 0.39 0.41 0.15 0.41\n",
        "0 0.39 0.41 0.15 0.41 7\n0 1 1 1 1 8\n",
        "0 7 0.39 0.41 0.15 0.41\n",
        "0 0.5 0.5 1 0.9 7\n",
        "0 0.500000 0.500000 1.000000 0.900000 7\n",
        "1 7 0.5 0.5 0.2 0.9 0.9\n2 8 0.5 0.5 0.2 1.02 0.9\n",
        '[{"image_id": 1, "bbox": [-0.001, 0.5, 0.2, 0.3]}]',
        "1,7,0,0,0.7,1,0.9,-1,-1,-1\n2,7,0.3,0.1,0.7,0.9,0.9,-1,-1,-1\n",
        '[{"image_id": 1, "bbox": [0.3, 0.2, 0.15, 0.4]}]',
        f"{CSV},frame\n0.3,0.2,0.45,1,0,0.9,7,3\n",
    ],
)
def test_fractions_of_the_frame_are_refused(tmp_path, text):
    with pytest.raises(
        DataError, match="are fractions of the frame, as YOLO writes them: convert them to pixels"
    ):
        read_boxes(write(tmp_path, text))


def test_small_boxes_are_no_fractions(tmp_path):
    assert read_boxes(write(tmp_path, "1,1,0,0,1,1\n")).total == 1
    assert read_boxes(write(tmp_path, "1,1,0.5,0.5,0.5,0.5\n1,2,0.5,0.5,20,40\n")).total == 2
    assert read_boxes(write(tmp_path, "1,1,0.5,0,1,1\n")).total == 1


def test_a_row_of_zeros_is_no_fraction(tmp_path):
    text = "1.00,7.00,10.00,10.00,20.00,40.00,0.90\n2.00,0.00,0.00,0.00,0.00,0.00,0.90\n"
    assert read_boxes(write(tmp_path, text)).total == 2


@pytest.mark.parametrize(
    "text", ["1," * 600_000, ",".join(["x_min", "y_min", "x_max", "y_max", *["a"] * 600_000])]
)
def test_a_line_without_end_is_refused_before_it_is_split(tmp_path, text):
    with pytest.raises(DataError, match="line 2 has more than 1 MiB"):
        read_boxes(write(tmp_path, f"1,7,10,20,30,40\n{text}\n"))


@pytest.mark.parametrize(
    "text",
    [
        "1,1,0,0,9,9\n" + "1,1,0,0,x,9\n" * 5000,
        "x_min,y_min,x_max,y_max,frame_index\n" + "0,0,9,x,1\n" * 5000,
        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2}] * 5000},
        {"images": [{"id": 1}] * 5000, "annotations": []},
    ],
    ids=["MOTChallenge", "supervision", "COCO annotations", "COCO images"],
)
def test_a_file_of_faults_alone_is_not_read_to_its_end(tmp_path, text):
    with pytest.raises(DataError, match="1,000 faults or more: it was read no further") as raised:
        read_boxes(write(tmp_path, text))
    assert "... and 980 more" in str(raised.value)


def test_one_fault_is_counted_as_one(tmp_path):
    with pytest.raises(DataError, match="has 1 fault:\n  line 2: "):
        read_boxes(write(tmp_path, "1,1,0,0,9,9\n1,1,0,0,x,9\n"))


def test_an_open_quote_does_not_swallow_the_boxes_below_it(tmp_path):
    file = tmp_path / "boxes.csv"
    row = "0,0,20,40,0,0.9,{0},{0},gate\n"
    header = "x_min,y_min,x_max,y_max,class_id,confidence,tracker_id,frame_index,site\n"
    rows = [row.format(n) for n in range(4)]
    file.write_text(header + "".join(rows))
    assert read_boxes(file).total == 4
    file.write_text(header + rows[0] + rows[1].replace("gate", '"gate') + "".join(rows[2:]))
    with pytest.raises(DataError, match="line 3: unexpected end of data: a quote"):
        read_boxes(file)
    file.write_text(header.replace("site", '"site') + "".join(rows))
    with pytest.raises(DataError, match="line 1: unexpected end of data: a quote"):
        read_boxes(file)


def test_a_column_that_stands_twice_is_refused(tmp_path):
    rows = "frame,x_min,x_min,y_min,x_max,y_max\n0,50,10,20,80,60\n"
    with pytest.raises(DataError, match="has the column x_min twice: leave one"):
        read_boxes(write(tmp_path, rows))


def test_a_category_whose_id_is_a_list_is_a_line(tmp_path):
    with pytest.raises(DataError, match="the id of the category person is a list or an object"):
        read_boxes(write(tmp_path, coco(categories=[{"id": [1], "name": "person"}])))
