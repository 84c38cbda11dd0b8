# A certificate for the status page's host and, once the load balancer is known, its name in Route 53.

data "aws_route53_zone" "this" {
  name = var.zone
}

resource "aws_acm_certificate" "this" {
  domain_name       = var.host
  validation_method = "DNS"

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_route53_record" "validation" {
  for_each = {
    for option in aws_acm_certificate.this.domain_validation_options : option.domain_name => option
  }

  zone_id = data.aws_route53_zone.this.zone_id
  name    = each.value.resource_record_name
  type    = each.value.resource_record_type
  records = [each.value.resource_record_value]
  ttl     = 300
}

resource "aws_acm_certificate_validation" "this" {
  certificate_arn         = aws_acm_certificate.this.arn
  validation_record_fqdns = [for record in aws_route53_record.validation : record.fqdn]
}

# A CNAME: the load balancer is the ingress controller's, and only its host name is known from the cluster.
resource "aws_route53_record" "host" {
  count = var.load_balancer == null ? 0 : 1

  zone_id = data.aws_route53_zone.this.zone_id
  name    = var.host
  type    = "CNAME"
  records = [var.load_balancer]
  ttl     = 300
}
