import threading
import unittest
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer

from app import Page


class TestPage(unittest.TestCase):
    def setUp(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def tearDown(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def read(self, path: str) -> str:
        address = f"http://127.0.0.1:{self.server.server_port}{path}"
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.read().decode()

    def test_it_says_what_it_is(self) -> None:
        self.assertIn("web application", self.read("/"))

    def test_it_is_well(self) -> None:
        self.assertEqual(self.read("/health"), "well\n")

    def test_anything_else_is_not_found(self) -> None:
        with self.assertRaises(urllib.error.HTTPError) as caught:
            self.read("/elsewhere")
        self.assertEqual(caught.exception.code, 404)
        caught.exception.close()
