def page(record):
    return ""
