"""Where images to measure come from: stores, folders of classes, caption files. Each gives a `Source`."""
