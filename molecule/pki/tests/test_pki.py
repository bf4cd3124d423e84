def test_x(host):
    print(host.check_output("ls -la /etc/n8n-platform/tls; cat /etc/n8n-platform/pki/pki.json; /usr/local/lib/n8n-platform/pki show"))
    assert 0
