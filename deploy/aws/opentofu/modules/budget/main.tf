# An alarm by mail when the month's cost of what has the cluster's tag goes beyond a limit. It stops nothing: the limits
# that hold are the groups' maxima and the pools'.

resource "aws_budgets_budget" "this" {
  name         = "${replace(var.name, ".", "-")}-month"
  budget_type  = "COST"
  limit_amount = tostring(var.monthly_usd)
  limit_unit   = "USD"
  time_unit    = "MONTHLY"

  # Only what was spent after the tag was activated for cost allocation, in the Billing console: docs/aws.md.
  cost_filter {
    name   = "TagKeyValue"
    values = [format("user:dask-tide/cluster$%s", var.cluster_name)]
  }

  notification {
    comparison_operator        = "GREATER_THAN"
    threshold                  = 80
    threshold_type             = "PERCENTAGE"
    notification_type          = "ACTUAL"
    subscriber_email_addresses = var.emails
  }

  notification {
    comparison_operator        = "GREATER_THAN"
    threshold                  = 100
    threshold_type             = "PERCENTAGE"
    notification_type          = "FORECASTED"
    subscriber_email_addresses = var.emails
  }
}
