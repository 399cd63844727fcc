package peers;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.math.BigDecimal;
import java.math.RoundingMode;

/** JSON to events, by Jackson's streaming parser. What is malformed is null. */
public final class Json {
    private static final JsonFactory JSON = new JsonFactory();

    /** A price for a thousand, in units, is that many nano units for one. */
    private static final int CPM_TO_NANO = 6;

    private Json() {}

    public static Event render(byte[] json) {
        String impression = null;
        String campaign = null;
        String currency = "USD";
        String price = "0";
        String viewer = "";
        String slot = "";
        String creative = "";
        long ts = -1;
        try (JsonParser in = JSON.createParser(json)) {
            in.nextToken();
            for (String name = in.nextFieldName(); name != null; name = in.nextFieldName()) {
                JsonToken token = in.nextToken();
                if (token == JsonToken.VALUE_NULL) {
                    continue;
                }
                switch (name) {
                    case "impression_id" -> impression = in.getText();
                    case "campaign_id" -> campaign = in.getText();
                    case "currency" -> currency = in.getText();
                    case "price" -> price = in.getText();
                    case "viewer_id" -> viewer = in.getText();
                    case "slot_id" -> slot = in.getText();
                    case "creative_id" -> creative = in.getText();
                    case "ts" -> ts = in.getLongValue();
                    default -> in.skipChildren();
                }
            }
            return impression == null || campaign == null || ts < 0
                    ? null
                    : new Render(impression, ts, campaign, currency, nano(price), viewer, slot, creative);
        } catch (IOException | ArithmeticException | NumberFormatException malformed) {
            return null;
        }
    }

    public static Event view(byte[] json) {
        String impression = null;
        int says = -1;
        long ts = -1;
        try (JsonParser in = JSON.createParser(json)) {
            in.nextToken();
            for (String name = in.nextFieldName(); name != null; name = in.nextFieldName()) {
                in.nextToken();
                switch (name) {
                    case "impression_id" -> impression = in.getText();
                    case "kind" -> says = says(in.getText());
                    case "ts" -> ts = in.getLongValue();
                    default -> in.skipChildren();
                }
            }
            return impression == null || says < 0 || ts < 0 ? null : new View(impression, ts, says);
        } catch (IOException malformed) {
            return null;
        }
    }

    private static int says(String kind) {
        return switch (kind) {
            case "viewable" -> Impression.MEASURABLE | Impression.VIEWABLE;
            case "measurable", "not_viewable" -> Impression.MEASURABLE;
            case "undetermined" -> 0;
            default -> -1;
        };
    }

    private static long nano(String price) {
        return new BigDecimal(price)
                .movePointRight(CPM_TO_NANO)
                .setScale(0, RoundingMode.HALF_EVEN)
                .longValueExact();
    }
}
