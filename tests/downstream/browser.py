"""Open a page in Chromium (QtWebEngine, headless) and run JavaScript in it: python browser.py PAGE SCRIPT OUTPUT.json.

OUTPUT.json: result of the script, which runs again while it is null, messages of the console, and every address asked
for.
"""

import json
import os
import sys
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--no-sandbox --disable-gpu"

from PyQt6.QtCore import QTimer, QUrl
from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

found = {"result": None, "console": [], "requests": []}


class Page(QWebEnginePage):
    def javaScriptConsoleMessage(self, level, message, line, source):
        found["console"].append(message)


class Interceptor(QWebEngineUrlRequestInterceptor):
    def interceptRequest(self, info):
        found["requests"].append(info.requestUrl().toString())


def main(page: str, script: str, output: str) -> None:
    app = QApplication(sys.argv[:1])
    view, interceptor = QWebEngineView(), Interceptor()
    view.resize(1400, 1400)
    view.setPage(Page(view))
    view.page().profile().setUrlRequestInterceptor(interceptor)

    def run():
        QTimer.singleShot(300, lambda: view.page().runJavaScript(script, finish))

    def finish(result):
        found["result"] = result
        run() if result is None else app.quit()

    view.loadFinished.connect(run)
    view.load(QUrl.fromLocalFile(page))
    view.show()
    QTimer.singleShot(60_000, app.quit)
    app.exec()
    Path(output).write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)  # Qt's own end may crash without a display


main(*sys.argv[1:])
